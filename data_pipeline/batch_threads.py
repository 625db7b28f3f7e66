"""Threads that fill batches ahead of their use and hand them over in order."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import torch

from data_pipeline.batch import Batch

_CHUNKS_PER_THREAD = 4
_MAX_CHUNK_IMAGES = 16
_CLOSE_TIMEOUT_SECONDS = 30.0
_set_num_threads_lock = threading.Lock()


class PendingBatch:
    """A batch that threads are filling; `fill(batch, slot)` writes one image into its place."""

    def __init__(self, batch: Batch, fill: Callable[[Batch, int], None]) -> None:
        """Describe the work; nothing starts before `BatchThreads.submit`."""
        self._batch = batch
        self._fill = fill
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._cancelled = False
        self._num_open_chunks = 0
        self._lock = threading.Lock()

    def split(self, num_threads: int) -> list[Callable[[], None]]:
        """Cut the work into chunks: small ones share a batch evenly, large ones cost less."""
        num_slots = len(self._batch.positions)
        size = num_slots // (num_threads * _CHUNKS_PER_THREAD)
        size = min(max(size, 1), _MAX_CHUNK_IMAGES)
        starts = range(0, num_slots, size)
        self._num_open_chunks = len(starts)
        return [partial(self._run, range(start, min(start + size, num_slots))) for start in starts]

    def cancel(self) -> None:
        """Leave the slots that are not filled yet."""
        self._cancelled = True
        self._done.set()

    def filled(self) -> Batch | None:
        """The batch if every slot is filled, without waiting."""
        is_filled = self._done.is_set() and not self._cancelled
        return self._batch if is_filled else None

    def wait(self) -> Batch:
        """Give the batch when every slot is filled, with the seconds that it took to wait.

        Raises:
            BaseException: what a thread met while filling.
        """
        start = time.perf_counter()
        self._done.wait()
        if self._error is not None:
            raise self._error
        self._batch.wait_seconds = time.perf_counter() - start
        return self._batch

    def _run(self, slots: range) -> None:
        try:
            for slot in slots:
                if self._cancelled:
                    return
                self._fill(self._batch, slot)
        except BaseException as error:  # whatever it is, it belongs to who waits for the batch
            with self._lock:
                self._error = self._error or error
            self.cancel()
        with self._lock:
            self._num_open_chunks -= 1
            if self._num_open_chunks == 0:
                self._done.set()


class BatchThreads:
    """A fixed number of threads working through batches in the order of submission."""

    def __init__(self, num_threads: int) -> None:
        """Start the threads, each with PyTorch's own parallelism switched off inside it."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: deque[PendingBatch] = deque()
        # A thread refers to the queue only, so a forgotten loader can be collected and closed.
        self._threads = [
            threading.Thread(
                target=_work_through, args=(self._tasks,), name=f"vitrain-decode-{i}", daemon=True
            )
            for i in range(num_threads)
        ]
        _start_with_one_torch_thread_each(self._threads, self._tasks)
        self.closed = False

    def __len__(self) -> int:
        """Batches submitted and not taken."""
        return len(self._pending)

    def submit(self, pending: PendingBatch) -> None:
        """Add a batch behind those already submitted."""
        self._pending.append(pending)
        for chunk in pending.split(len(self._threads)):
            self._tasks.put(chunk)

    def take(self) -> Batch:
        """Wait for the oldest batch.

        Raises:
            BaseException: what a thread met while filling it.
        """
        return self._pending.popleft().wait()

    def next_filled(self) -> Batch | None:
        """What `take` would give, if it would give it at once; it stays where it is."""
        return self._pending[0].filled() if self._pending else None

    def cancel_all(self) -> None:
        """Forget every batch not taken."""
        while self._pending:
            self._pending.popleft().cancel()

    def close(self) -> None:
        """End the threads, after the images that they have in hand; may be called again."""
        if self.closed:
            return
        self.closed = True
        self.cancel_all()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():  # where the collector happened to run
                thread.join(_CLOSE_TIMEOUT_SECONDS)


def _work_through(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # else an idle thread would keep its last batch alive


def _start_with_one_torch_thread_each(
    threads: list[threading.Thread], tasks: queue.SimpleQueue[Callable[[], None] | None]
) -> None:
    """Start threads in which one operation of PyTorch uses one core.

    `torch.set_num_threads` sets the calling thread's number and the default of threads to come, so
    the caller's number is set anew once all threads have theirs.
    """
    everyone_set = threading.Barrier(len(threads) + 1)

    def use_one_torch_thread() -> None:
        # Asking first: a thread's first use of PyTorch takes the default, also after being told.
        torch.get_num_threads()
        torch.set_num_threads(1)
        everyone_set.wait()

    with _set_num_threads_lock:
        callers_number = torch.get_num_threads()
        for thread in threads:
            thread.start()
            tasks.put(use_one_torch_thread)
        everyone_set.wait()
        torch.set_num_threads(callers_number)
