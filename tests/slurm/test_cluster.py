"""The cluster itself: two at a time, and nothing left of one whose owner was killed."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.pretrain_processes import ROOT
from tests.slurm.cluster import SlurmCluster, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

OWNER = """
import sys
from tests.slurm.cluster import running_cluster
with running_cluster() as cluster:
    job = "#!/bin/bash\\nsleep 1000 &\\nsleep 1000\\n"
    (cluster.folder / "job").write_text(job)
    cluster.command("sbatch", "--output=/dev/null", str(cluster.folder / "job"))
    print(cluster.folder, cluster.keeper.pid, flush=True)
    sys.stdin.read()
"""


def test_a_second_cluster_stands_beside_and_ends_with_its_owner(cluster: SlurmCluster):
    pipe = subprocess.PIPE
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    )
    try:
        assert owner.stdout is not None
        folder, keeper = owner.stdout.readline().split()
        wait_until(lambda: len(tasks_of(keeper)) == 2, 60, lambda: str(tasks_of(keeper)))
        processes = psutil.Process(int(keeper)).children(recursive=True)
        assert {process.name() for process in processes} >= {"munged", "slurmctld", "slurmd"}
    finally:
        owner.kill()
        owner.communicate(timeout=60)
    wait_until(lambda: not any(map(is_alive, processes)), 60, lambda: str(processes))
    wait_until(lambda: not Path(folder).exists(), 60, lambda: folder)
    cluster.wait_idle()


def tasks_of(keeper: str) -> list[psutil.Process]:
    processes = psutil.Process(int(keeper)).children(recursive=True)
    return [process for process in processes if is_alive(process) and process.name() == "sleep"]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
