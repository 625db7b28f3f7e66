"""The array job that builds shards, with Python played by a script that notes its arguments."""

import os
import subprocess
from pathlib import Path

import pytest

SBATCH = Path(__file__).resolve().parents[2] / "launch" / "build_shards.sbatch"


@pytest.fixture
def submit(tmp_path):
    """Runs the batch script as a task of an array; gives exit code, arguments and messages."""

    def run(*argv: str, **variables: str) -> tuple[int, str, str]:
        python = tmp_path / "python"
        python.write_text('#!/bin/bash\necho "$*"\nexit 7\n')
        python.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), **variables}
        done = subprocess.run(
            ["bash", SBATCH, *argv], env=environment, capture_output=True, text=True, timeout=20
        )
        return done.returncode, done.stdout.strip(), done.stderr

    return run


def test_a_task_builds_its_part(submit):
    code, words, _ = submit(
        "--source",
        "image-folder",
        "--output",
        "/with space",
        SLURM_ARRAY_TASK_ID="3",
        SLURM_ARRAY_TASK_MAX="32",
        SLURM_CPUS_PER_TASK="8",
    )
    assert code == 7  # the build's own exit code, so that Slurm sees it
    assert words == (
        "-u -m data_pipeline.build --source image-folder --output /with space --workers 8 "
        "--part 3/32"
    )


def test_merge_joins(submit):
    assert submit("--merge", "/shards")[:2] == (7, "-u -m data_pipeline.merge /shards")


def test_without_an_array_it_says_what_to_do(submit):
    code, words, message = submit("--source", "digits")
    assert (code, words) == (2, "")
    assert "--array=1-N" in message
