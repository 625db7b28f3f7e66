"""The launchers people use: `deepspeed`, whose own death its ranks must notice, and `torchrun`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from launch.slurm_env import free_port
from tests.integration.pretrain_processes import (
    SCRIPT,
    environment,
    options,
    read_json,
    tiny_shards,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PATIENCE_SECONDS = 240
DEEPSPEED = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
LONG = {
    "schedule.total-steps": 1_000_000,
    "logging.every-steps": 5,
    "evaluation.every-steps": 10**6,
}


@pytest.fixture
def start(tmp_path):
    """Starts a launcher with a long run; ends whatever it left behind."""
    shards = tiny_shards(tmp_path / "train", (40, 37), seed=0)
    arguments = options({**LONG, "data.train": shards, "run-dir": tmp_path / "run"})
    started: list[subprocess.Popen] = []

    def start(launcher: Sequence[str], *more: str) -> subprocess.Popen:
        log = (tmp_path / "log").open("a")
        process = subprocess.Popen(
            [*launcher, str(SCRIPT), *arguments, *more], env=environment(), stdout=log, stderr=log
        )
        started.append(process)
        return process

    yield start
    for process in [*started, *ranks_of(tmp_path / "run")]:
        process.kill()


def ranks_of(run: Path) -> list[psutil.Process]:
    """Processes that run our script in this run folder, in the order of their ranks."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(run) in (words := process.info["cmdline"] or [])
        and len(words) > 2
        and str(SCRIPT) in words[1:3]
    ]
    return sorted(found, key=lambda process: int(process.environ().get("RANK", "0")))


def wait_until(is_true: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def has_reached(run: Path, step: int) -> Callable[[], bool]:
    def ask() -> bool:
        status = run / "status.json"
        if not status.exists():
            return False
        content = read_json(status)
        return content["state"] == "running" and content["step"] >= step

    return ask


def everything_of(run: Path) -> list[list[str]]:
    """Command lines of all processes that were given this run folder, launchers among them."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in lines if str(run) in words]


def kill_a_rank(launcher: subprocess.Popen, run: Path, log: Path) -> None:
    """kill -9 of one: launcher and other rank end promptly, and nothing says that all is well."""
    wait_until(has_reached(run, 5), log)
    assert len(ranks_of(run)) == 2
    ranks_of(run)[1].kill()
    assert launcher.wait(60) != 0, log.read_text()
    wait_until(lambda: not everything_of(run), log)
    assert read_json(run / "status.json")["state"] in ("running", "failed")


def kill_the_launcher(launcher: subprocess.Popen, run: Path, log: Path) -> int:
    """kill -9 of the launcher: its ranks notice and save; gives the step."""
    wait_until(has_reached(run, read_json(run / "status.json")["step"] + 5), log)
    launcher.kill()
    launcher.wait(60)
    wait_until(lambda: not everything_of(run), log)
    status = read_json(run / "status.json")
    assert status["state"] == "saved" and "parent is gone" in status["reason"], log.read_text()
    newest = (run / "checkpoints" / "latest").read_text().strip()
    assert newest == f"step-{status['step']:08d}"
    return status["step"]


def test_under_deepspeed_all_ends_with_a_dead_rank_a_dead_launcher_a_signal(start, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    kill_a_rank(start(DEEPSPEED), run, log)
    step = kill_the_launcher(start(DEEPSPEED), run, log)

    launcher = start(DEEPSPEED)
    wait_until(has_reached(run, step + 5), log)
    os.kill(ranks_of(run)[1].pid, signal.SIGUSR1)
    assert launcher.wait(PATIENCE_SECONDS) == 85, log.read_text()
    status = read_json(run / "status.json")
    assert (status["state"], status["reason"]) == ("saved", "rank 1: SIGUSR1")
    assert status["step"] > step and status["resumed_from_steps"][-1] == step


def test_under_torchrun_all_ends_with_a_dead_rank_a_dead_launcher_a_signal(start, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    kill_a_rank(start(TORCHRUN), run, log)
    step = kill_the_launcher(start(TORCHRUN), run, log)

    launcher = start(TORCHRUN)
    wait_until(has_reached(run, step + 5), log)
    launcher.terminate()
    assert launcher.wait(PATIENCE_SECONDS) != 0
    wait_until(lambda: not everything_of(run), log)
    saved = read_json(run / "status.json")
    assert saved["state"] == "saved", log.read_text()

    launcher = start(TORCHRUN, "--schedule.total-steps", str(saved["step"] + 5))
    assert launcher.wait(PATIENCE_SECONDS) == 0, log.read_text()
    status = read_json(run / "status.json")
    assert (status["state"], status["step"]) == ("finished", saved["step"] + 5)
    assert status["resumed_from_steps"][-1] == saved["step"]


def test_two_machines_of_a_hostfile_without_ssh(start, tmp_path):
    """Played by two names of this one; the command is started on each of them."""
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    several = ("--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--master_addr", "127.0.0.1")
    port = str(free_port())
    deepspeed = DEEPSPEED[0]
    machines = [
        start(
            (deepspeed, *several, "--master_port", port, "--node_rank", str(number)),
            "--schedule.total-steps",
            "5",
        )
        for number in range(2)
    ]
    log = (tmp_path / "log").read_text
    assert [machine.wait(PATIENCE_SECONDS) for machine in machines] == [0, 0], log()
    assert read_json(tmp_path / "run" / "status.json")["state"] == "finished"
    assert "(2 ranks x" in log()
