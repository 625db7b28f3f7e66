import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import running_cluster

INSTALL = Path(__file__).with_name("install_slurm.sh")
INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def cluster():
    """One cluster for all tests; skips them, with the reason, where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs of its user only as root: run the Slurm tests as root")
    try:
        done = subprocess.run(
            ["bash", INSTALL], capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"Slurm is not installed; installing took longer than {INSTALL_SECONDS} s")
    if done.returncode:
        pytest.skip(f"Slurm is not installed: {' '.join(done.stderr.split())[-300:]}")
    with running_cluster() as running:
        yield running
