"""A process in which nothing happens ends, and says what it was waiting for."""

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import FrameType

import pytest

from pretrain.watchdog import EXIT_STALLED, Watchdog, report, waits_for
from tests.integration.pretrain_processes import ROOT


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A process of its own whose watchdog waits half a second."""
    script = f"""
        import ctypes, os, time
        from pathlib import Path
        from pretrain.watchdog import Watchdog
        watchdog = Watchdog(Path({str(folder)!r}), 0, 1, 0.5, lambda why: print(why, flush=True))
    """
    program = textwrap.dedent(script) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_a_process_that_stands_still_is_ended_with_its_stacks(tmp_path):
    ended = run(tmp_path, "def stands_still():\n    time.sleep(50)\nstands_still()")
    assert ended.returncode == EXIT_STALLED, ended.stderr
    assert "waits for computation" in ended.stdout and str(tmp_path / "stalls") in ended.stdout
    assert "stands_still" in (tmp_path / "stalls" / "rank-00000.txt").read_text()


def test_a_process_that_moves_is_left_alone_and_nothing_stays(tmp_path):
    body = """
        for step in range(20):
            time.sleep(0.1)
            watchdog.beat(step)
        watchdog.close()
        time.sleep(1.5)
    """
    ended = run(tmp_path, body)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert list((tmp_path / "stalls").iterdir()) == []


def test_a_thread_that_never_gives_the_interpreter_back_is_no_way_out(tmp_path):
    body = "time.sleep(0.3)\nctypes.PyDLL(None).sleep(50)  # keeps the interpreter's lock"
    ended = run(tmp_path, body)
    assert ended.returncode == 1
    frozen = (tmp_path / "stalls" / "rank-00000-frozen.txt").read_text()
    assert "Timeout" in frozen and "most recent call first" in frozen


def test_a_failing_report_does_not_keep_the_process_alive(tmp_path):
    ended = run(tmp_path, "watchdog._on_stall = None\ntime.sleep(50)")
    assert ended.returncode == EXIT_STALLED


def frame_in(*files: str) -> FrameType:
    """The innermost frame of calls through functions of these files, outermost first."""
    frame = sys._getframe()
    for name in files:
        code = "import sys\ndef call(inner):\n    return inner() if inner else sys._getframe()"
        space: dict = {}
        exec(compile(code, name, "exec"), space)
        frame = (space, frame)
    inner = None
    while isinstance(frame, tuple):
        space, frame = frame
        call, within = space["call"], inner
        inner = lambda call=call, within=within: call(within)  # noqa: E731
    return inner()


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("/r/pretrain/step.py", "/r/data_pipeline/loader.py", "/lib/queue.py"), "data"),
        (("/r/pretrain/step.py", "/s/torch/autograd/graph.py"), "computation"),
        (("/r/pretrain/step.py", "/s/deepspeed/comm/comm.py", "/s/torch/x.py"), "collective"),
        (("/r/pretrain/saver.py", "/r/a.py", "/s/torch/distributed/c10d.py"), "collective"),
        (("/r/pretrain/saver.py", "/lib/concurrent/futures.py"), "disk"),
    ],
)
def test_the_innermost_known_place_says_what_is_waited_for(files, kind):
    assert waits_for({1: frame_in(*files)}, 1) == kind


def test_a_collective_of_the_backward_thread_counts():
    frames = {1: frame_in("/s/torch/autograd/graph.py"), 2: frame_in("/s/deepspeed/comm/comm.py")}
    assert waits_for(frames, 1) == "collective"
    frames[1] = frame_in("/r/data_pipeline/loader.py")
    assert waits_for(frames, 1) == "data"


def record(rank: int, step: int, waits: str) -> dict:
    return {"rank": rank, "step": step, "seconds": 60, "waits_for": waits}


def test_the_report_names_the_rank_that_the_others_wait_for(tmp_path):
    waiting = {rank: record(rank, 8, "collective") for rank in (0, 1)}
    assert "slowest is rank 2, at step 8, which waits for data" in report(
        {**waiting, 2: record(2, 8, "data")}, 3, tmp_path
    )
    assert "slowest is rank 2, at step 7" in report(
        {**waiting, 2: record(2, 7, "disk")}, 3, tmp_path
    )
    assert "rank 2 said nothing" in report(waiting, 3, tmp_path)
    assert "all ranks wait in a collective at step 8" in report(waiting, 2, tmp_path)


def test_the_lowest_rank_that_can_reports(tmp_path):
    watchdogs = [Watchdog(tmp_path, rank, 3, 1000.0, print) for rank in (1, 2)]
    try:
        for watchdog in watchdogs:
            watchdog._grace_seconds = 0.3
            watchdog._write_record(60.0)
        assert "rank 0 said nothing" in str(watchdogs[0]._tell())
        assert watchdogs[1]._tell() is None
    finally:
        for watchdog in watchdogs:
            watchdog.close()
    written = json.loads((tmp_path / "stalls" / "rank-00001.json").read_text())
    assert written["seconds"] == 60 and threading.main_thread().ident
