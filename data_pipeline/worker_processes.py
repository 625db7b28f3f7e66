"""Runs jobs in worker processes, a few at a time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from configs.errors import RefusedInput

Job = TypeVar("Job")
Result = TypeVar("Result")


def num_usable_cores() -> int:
    """Cores that this process may run on, which a job scheduler can make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    num_workers: int,
    preload: Sequence[str] = ("pyarrow", "PIL.Image"),
) -> Iterator[Result]:
    """Results of `function` over `jobs`, in the order in which they end; in here for one worker.

    At most two jobs per worker are taken from `jobs` in advance, so a long listing is never copied
    whole. `preload` are modules that workers share, because each needs them.

    Raises:
        RefusedInput: A worker process died.
    """
    if num_workers == 1:
        yield from map(function, jobs)
        return
    running: set[Future[Result]] = set()
    with _worker_processes(num_workers, preload) as executor:
        for job in jobs:
            running.add(executor.submit(function, job))
            if len(running) >= 2 * num_workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def run_jobs_in_order(
    function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int
) -> Iterator[Result]:
    """The same, with results in the order of `jobs`; at most two of these per worker are held.

    Raises:
        RefusedInput: A worker process died.
    """
    if num_workers == 1:
        yield from map(function, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    with _worker_processes(num_workers, ("PIL.Image",)) as executor:
        for job in jobs:
            waiting.append(executor.submit(function, job))
            if len(waiting) >= 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _worker_processes(num_workers: int, preload: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    # Not fork: the caller may run threads (MLflow's, torch's) whose locks a child would inherit.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    with ProcessPoolExecutor(num_workers, context, initializer=_follow_parent) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise RefusedInput(
                f"a worker process died (out of memory?); use fewer than --workers {num_workers}"
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let the parent alone decide when work ends: by telling so, or by being gone.

    Ctrl-C reaches every process of the terminal, and a worker whose parent was killed would wait
    for its next job for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker process"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
