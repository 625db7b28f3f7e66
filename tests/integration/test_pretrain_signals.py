"""Stop signals at moments other than a step: start-up, evaluation, saving."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.pretrain_processes import (
    RUN_SECONDS,
    SCRIPT,
    environment,
    options,
    read_json,
    run_ranks,
    tiny_shards,
)
from training.preemption import EXIT_SAVED

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "data.train": tiny_shards(folder / "train", (33, 27), seed=0),
        "data.val": tiny_shards(folder / "val", (20,), seed=1),
    }


def handles(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_signal_during_the_imports_waits_for_the_first_step(shards, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *options({**shards, "run-dir": run})],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        give_up = time.monotonic() + RUN_SECONDS
        while not handles(process.pid, signal.SIGUSR1) and time.monotonic() < give_up:
            time.sleep(0.005)
        assert not run.exists(), "nothing but imports has happened"
        process.send_signal(signal.SIGUSR1)
        text = process.communicate(timeout=RUN_SECONDS)[0]
    finally:
        process.kill()
    assert process.returncode == EXIT_SAVED, text
    check_saved(run, "SIGUSR1", steps={1})


@pytest.mark.parametrize(
    ("name", "before", "steps"),
    [
        ("SIGTERM", "pretrain.plan:make_plan", {1, 2}),
        ("SIGUSR2", "pretrain.validation:evaluate", {6}),
        ("SIGUSR1", "pretrain.saver:write_state", {4, 5, 6}),
    ],
)
def test_a_signal_to_one_of_two_ranks_saves_one_step_on_both(name, before, steps, shards, tmp_path):
    """While data are opened, in the midst of an evaluation, while a checkpoint is written."""
    run = tmp_path / "run"
    ended = run_ranks(
        2,
        options({**shards, "run-dir": run, "evaluation.batch-images": 2}),
        drive={"signal": name, "before": before, "on_rank": 1},
    )
    assert ended.codes == [EXIT_SAVED] * 2, ended.texts
    check_saved(run, f"rank 1: {name}", steps)


def check_saved(run: Path, reason: str, steps: set[int]) -> None:
    status = read_json(run / "status.json")
    assert status["state"] == "saved" and reason in status["reason"]
    assert status["step"] in steps
    latest = (run / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step-{status['step']:08d}"
    marker = read_json(run / "checkpoints" / latest / "marker.json")
    assert marker["metadata"]["evaluation_pending"] == (status["step"] == 6)
