"""The run folder: resume rules, status, the lock."""

import json
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from training.run_folder import open_run_folder

ROOT = Path(__file__).resolve().parents[2]


def open_it(path, resume="auto", is_main=True):
    return open_run_folder(path, resume=resume, is_main=is_main)


def add_checkpoint(folder):
    step = folder.checkpoints / "step-00000010"
    step.mkdir(parents=True)
    (step / "marker.json").write_text("{}")


def test_auto_takes_an_unused_and_a_used_folder(tmp_path):
    folder = open_it(tmp_path / "a" / "run")
    assert folder.checkpoints.is_dir()
    assert not folder.is_used() and not folder.finished()
    folder.write_status("running", 3)
    assert open_it(tmp_path / "a" / "run").is_used()


def test_never_refuses_a_used_folder_and_names_its_state(tmp_path):
    open_it(tmp_path / "run", "never").write_status("saved", 3)
    with pytest.raises(RefusedInput, match=r"resume = never.*state: saved.*--run-dir"):
        open_it(tmp_path / "run", "never")


def test_never_refuses_a_folder_with_checkpoints_but_no_status(tmp_path):
    add_checkpoint(open_it(tmp_path))
    with pytest.raises(RefusedInput, match="unknown"):
        open_it(tmp_path, "never")


def test_must_refuses_a_folder_without_checkpoint(tmp_path):
    folder = open_it(tmp_path)
    folder.write_status("running", 0)
    with pytest.raises(RefusedInput, match="has no checkpoint"):
        open_it(tmp_path, "must")
    add_checkpoint(folder)
    assert open_it(tmp_path, "must").has_checkpoint()


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedInput, match="cannot make run folder"):
        open_it(tmp_path / "file" / "run")


def test_status_says_state_step_time_and_more(tmp_path):
    folder = open_it(tmp_path)
    folder.write_status("saved", 7, reason="SIGTERM")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["reason"]) == ("saved", 7, "SIGTERM")
    assert datetime.fromisoformat(status["time"]).tzinfo is not None
    folder.write_status("finished", 9)
    assert folder.finished()


def test_start_files_of_two_starts(tmp_path):
    folder = open_it(tmp_path)
    folder.write_start_files("a: 1\n", "python x --a 1", {"torch": "2"})
    folder.write_start_files("a: 2\n", "python x --a 2")
    assert (tmp_path / "config.yaml").read_text() == "a: 2\n"
    commands = (tmp_path / "command.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in commands] == ["python x --a 1", "python x --a 2"]
    assert json.loads((tmp_path / "environment.json").read_text()) == {"torch": "2"}


def test_other_ranks_write_nothing(tmp_path):
    folder = open_it(tmp_path / "run", "must", is_main=False)
    folder.write_status("running", 1)
    folder.write_result({"a": 1})
    folder.write_start_files("", "")
    with folder.lock():
        pass
    assert not (tmp_path / "run").exists()


def test_no_temporary_files_stay(tmp_path):
    folder = open_it(tmp_path)
    folder.write_status("running", 1)
    folder.write_result({"a": 1})
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "status.json", "result.json"}


def test_the_second_owner_is_told_who_holds_it(tmp_path):
    """A real second process, because a lock is the process's."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from configs.errors import RefusedInput\n"
        "from training.run_folder import RunFolder\n"
        "try:\n"
        "    with RunFolder(Path(sys.argv[2])).lock(): print('got it')\n"
        "except RefusedInput as refused: print(refused)\n"
    )

    def try_to_lock():
        command = [sys.executable, "-c", program, str(ROOT), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    with open_it(tmp_path).lock():
        refusal = try_to_lock()
    assert f"process {os.getpid()} on {socket.gethostname()} (since 2" in refusal
    assert "--run-dir" in refusal
    assert try_to_lock() == "got it\n"


def test_a_killed_owner_on_another_host_is_named_and_then_followed(tmp_path):
    """Two nodes that share the folder: host names differ, the file system's lock is one."""
    program = (
        "import socket, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from configs.errors import RefusedInput\n"
        "from training.run_folder import RunFolder\n"
        "socket.gethostname = lambda: sys.argv[3]\n"
        "try:\n"
        "    with RunFolder(Path(sys.argv[2])).lock():\n"
        "        print('got it', flush=True)\n"
        "        sys.stdin.read()\n"
        "except RefusedInput as refused: print(refused, flush=True)\n"
    )

    def start_on(host):
        command = [sys.executable, "-c", program, str(ROOT), str(tmp_path), host]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        processes.append(process)
        return process, process.stdout.readline()

    processes = []
    try:
        first, said = start_on("node-a")
        assert said == "got it\n"
        _, said = start_on("node-b")
        assert f"in use by process {first.pid} on node-a (since 2" in said
        first.kill()
        first.wait(60)
        # What the first wrote about itself is still there, and stops nobody.
        assert json.loads((tmp_path / ".lock-owner.json").read_text())["host"] == "node-a"
        second, said = start_on("node-b")
        assert said == "got it\n"
        owner = json.loads((tmp_path / ".lock-owner.json").read_text())
        assert (owner["host"], owner["pid"]) == ("node-b", second.pid)
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=60)


def test_the_lock_is_let_go_when_the_block_fails(tmp_path):
    folder = open_it(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.lock():
        _ = 1 / 0
    with folder.lock():
        owner = json.loads((tmp_path / ".lock-owner.json").read_text())
    assert owner["pid"] == os.getpid()
