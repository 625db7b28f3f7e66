"""Threads that fill batches: in order, bounded, one core each, and gone when they should be."""

import threading
import time

import numpy as np
import pytest
import torch

from data_pipeline.batch import Batch
from data_pipeline.batch_threads import BatchThreads, PendingBatch


def pending(fill, num_slots: int = 10, first: int = 0) -> PendingBatch:  # type: ignore[no-untyped-def]
    return PendingBatch(Batch.empty(np.arange(first, first + num_slots), (2, 2)), fill)


def fill_with_position(batch: Batch, slot: int) -> None:
    batch.images[slot] = int(batch.positions[slot]) % 256
    batch.set_source(slot, int(batch.positions[slot]), slot)


@pytest.fixture
def threads():  # type: ignore[no-untyped-def]
    made = BatchThreads(3)
    yield made
    made.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("vitrain-decode")]


@pytest.mark.parametrize("num_slots", [1, 2, 10, 100, 1000])
def test_batches_are_complete_and_in_order(threads: BatchThreads, num_slots: int) -> None:
    for number in range(4):
        threads.submit(pending(fill_with_position, num_slots, first=number * num_slots))
    assert len(threads) == 4
    for number in range(4):
        batch = threads.take()
        expected = torch.arange(number * num_slots, (number + 1) * num_slots)
        assert torch.equal(batch.rows, expected)
        assert torch.equal(batch.images[:, 0, 1, 1].long(), expected % 256)
    assert len(threads) == 0


def test_a_slow_first_batch_is_still_first(threads: BatchThreads) -> None:
    def slow(batch: Batch, slot: int) -> None:
        time.sleep(0.05)
        fill_with_position(batch, slot)

    threads.submit(pending(slow, 2, first=100))
    threads.submit(pending(fill_with_position, 2, first=200))
    first = threads.take()
    assert first.rows.tolist() == [100, 101]
    assert first.wait_seconds > 0.02
    time.sleep(0.05)
    assert threads.take().wait_seconds < 0.02


def test_an_error_reaches_the_taker_of_its_batch_only(threads: BatchThreads) -> None:
    def fails(batch: Batch, slot: int) -> None:
        if slot == 7:
            raise KeyError("slot seven")

    threads.submit(pending(fill_with_position))
    threads.submit(pending(fails))
    threads.submit(pending(fill_with_position, first=20))
    assert threads.take().rows.tolist() == list(range(10))
    with pytest.raises(KeyError, match="slot seven"):
        threads.take()
    assert threads.take().rows.tolist() == list(range(20, 30))


def test_cancelled_batches_are_not_worked_on(threads: BatchThreads) -> None:
    started, release = threading.Semaphore(0), threading.Event()

    def waits(batch: Batch, slot: int) -> None:
        started.release()
        release.wait(10)

    for _ in range(5):
        threads.submit(pending(waits))
    for _ in range(3):  # each of the three threads has one image in hand
        assert started.acquire(timeout=10)
    threads.cancel_all()
    release.set()
    threads.submit(pending(fill_with_position))
    assert threads.take().rows.tolist() == list(range(10))
    assert not started.acquire(blocking=False)


def test_each_thread_keeps_to_one_core_and_nobody_else_does() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        numbers: list[int] = []

        def note(batch: Batch, slot: int) -> None:
            # An operation first: it is what makes a thread take the default number.
            torch.ones(200_000).add_(1).sum()
            numbers.append(torch.get_num_threads())

        threads = BatchThreads(2)
        threads.submit(pending(note, 20))
        threads.take()
        threads.close()
        assert numbers == [1] * 20
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join(10)
        assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_close_is_prompt_and_may_be_repeated() -> None:
    def slow(batch: Batch, slot: int) -> None:
        time.sleep(0.05)

    threads = BatchThreads(2)
    for _ in range(20):
        threads.submit(pending(slow, 100))  # a minute and more of work
    start = time.perf_counter()
    threads.close()
    threads.close()
    assert time.perf_counter() - start < 5
    assert not [t for t in threading.enumerate() if t.name.startswith("vitrain-decode")]
