"""The batch script's logic, with `srun` and `scontrol` played by scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SBATCH = Path(__file__).resolve().parents[2] / "launch" / "pretrain.sbatch"


@pytest.fixture
def job(tmp_path):
    """Starts the batch script with an srun that runs `body` and a job in `state`."""

    def start(body: str, state: str, **variables: str) -> subprocess.Popen:
        programs = {
            "srun": f'echo "$MASTER_ADDR $*" > {tmp_path}/srun\n{body}',
            "scontrol": f'if [ "$1" = show ]; then echo "JobId=7 JobState={state} X=1"; '
            f'else echo "$*" > {tmp_path}/requeued; fi',
            "sleep": "exit 0",
        }
        for name, text in programs.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "4",
            **variables,
        }
        return subprocess.Popen(["bash", SBATCH, "--seed", "1"], env=environment)

    return start


@pytest.mark.parametrize(
    ("code", "state", "restarts", "is_requeued"),
    [
        (85, "RUNNING", "0", True),
        (85, "CANCELLED", "0", False),  # scancel
        (85, "COMPLETING", "0", False),  # preempted: Slurm requeues it itself
        (85, "RUNNING", "100", False),
        (0, "RUNNING", "0", False),
        (1, "RUNNING", "0", False),
    ],
)
def test_a_saved_run_is_requeued_and_nothing_else(
    code, state, restarts, is_requeued, job, tmp_path
):
    process = job(f"exit {code}", state, SLURM_RESTART_COUNT=restarts)
    assert process.wait(20) == code
    assert (tmp_path / "requeued").exists() == is_requeued
    words = (tmp_path / "srun").read_text().split()
    assert words[0] == os.uname().nodename and words[-3:] == ["launch/pretrain.py", "--seed", "1"]


def test_a_term_of_a_preemption_does_not_end_the_script_before_srun(job, tmp_path):
    process = job(
        f"touch {tmp_path}/up; command -p sleep 1; exit 85",
        "RUNNING",
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 85
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]
