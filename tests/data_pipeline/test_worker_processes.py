import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from configs.errors import RefusedInput
from data_pipeline.worker_processes import run_jobs, run_jobs_in_order

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_jobs_are_taken_a_few_at_a_time():
    taken = []

    def jobs():
        for job in range(20):
            taken.append(job)
            yield -job

    results = run_jobs(abs, jobs(), 2)
    first = next(results)
    assert len(taken) <= 5  # two for each worker, and the one that made room for it
    assert sorted([first, *results]) == list(range(20))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_jobs_in_order(num_workers):
    taken = []

    def jobs():
        for job in range(20):
            taken.append(job)
            yield job / 20

    results = run_jobs_in_order(abs, jobs(), num_workers)
    first = next(results)
    assert len(taken) <= 4
    found = [first, *results]
    assert found == [job / 20 for job in range(20)]


def test_a_worker_that_dies_is_reported():
    with pytest.raises(RefusedInput, match="a worker process died"):
        list(run_jobs(os._exit, [3, 3, 3], 2))


def test_workers_end_with_a_parent_that_was_killed():
    code = (
        "import time\nfrom data_pipeline.worker_processes import run_jobs\n"
        "list(run_jobs(time.sleep, [300] * 4, 2))\n"
    )
    parent = psutil.Process(subprocess.Popen([sys.executable, "-c", code]).pid)
    deadline = time.monotonic() + 60
    # The server that forks, its two workers, and the tracker of semaphores.
    while len(family := parent.children(recursive=True)) < 4:
        assert time.monotonic() < deadline, f"only {family} started"
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
