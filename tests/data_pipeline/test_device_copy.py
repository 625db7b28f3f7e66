"""Copies to a GPU that begin before a batch is taken; stand-ins for streams, events and memory."""

import contextlib
import threading
import time

import numpy as np
import pytest
import torch

from configs.data_groups import AugmentConfig
from data_pipeline import Batch, SampleOrder, TrainLoader, TrainTransform
from data_pipeline import batch as module
from data_pipeline.batch_threads import BatchThreads, PendingBatch
from tests.data_pipeline.sample_shards import plain_dataset

GPU = torch.device("cuda", 0)


def some_batch() -> Batch:
    batch = Batch.empty(np.arange(4), (2, 3))
    batch.images.copy_(torch.arange(batch.images.numel()).view_as(batch.images))
    batch.labels.copy_(torch.arange(4))
    return batch


class Tensor:
    """A tensor of the device."""

    def __init__(self, value, log):
        self.value, self.log = value, log

    def record_stream(self, stream):
        self.log.append(f"kept for {stream.name}")


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.of}")


@pytest.fixture
def gpu(monkeypatch):
    """What is done to the device, in order; `gpu.copies` counts batches that were copied."""

    class Log(list):
        copies = 0
        current = None

    log = Log()
    computing, copying = Stream("computing", log), Stream("copying", log)
    log.current = computing

    class Event:
        of = None

        def record(self, stream):
            self.of = stream.name
            log.append(f"marked in {stream.name}")

    @contextlib.contextmanager
    def within(stream):
        before, log.current = log.current, stream
        yield
        log.current = before

    def copied(batch, device):
        assert torch.device(device) == GPU
        log.copies += 1
        log.append(f"copied in {log.current.name}")
        return Tensor(batch.images.clone(), log), Tensor(batch.labels.clone(), log)

    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: log.current)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(module, "_copy_stream", lambda _: copying)
    monkeypatch.setattr(module, "_copied", copied)
    return log


def test_a_copy_begun_early_is_what_the_computing_stream_gets(gpu):
    batch = some_batch()
    batch.begin_copy(GPU)
    batch.begin_copy(GPU)
    assert gpu == ["copied in copying", "marked in copying"]
    images, labels = batch.to(GPU)
    assert gpu[2:] == ["computing waits for copying", *["kept for computing"] * 2]
    assert torch.equal(images.value, batch.images) and torch.equal(labels.value, batch.labels)


def test_the_device_holds_a_copy_only_until_it_is_taken(gpu):
    batch = some_batch()
    batch.begin_copy(GPU)
    batch.to(GPU)
    batch.to(GPU)
    assert gpu.copies == 2 and gpu[-1] == "copied in computing"


def test_without_a_beginning_the_copy_is_made_when_it_is_asked_for(gpu):
    some_batch().to(GPU)
    assert gpu == ["copied in computing"]


def test_nothing_is_copied_for_a_cpu():
    batch = some_batch()
    batch.begin_copy(torch.device("cpu"))
    images, labels = batch.to("cpu")
    assert images is batch.images and labels is batch.labels


def test_only_a_filled_batch_is_copied_ahead():
    may_go_on = threading.Event()

    def fill(batch, slot):
        assert may_go_on.wait(20)
        batch.images[slot] = slot

    threads = BatchThreads(1)
    try:
        assert threads.next_filled() is None
        batch = some_batch()
        threads.submit(PendingBatch(batch, fill))
        assert threads.next_filled() is None
        may_go_on.set()
        deadline = time.monotonic() + 20
        while threads.next_filled() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threads.next_filled() is batch and len(threads) == 1
        assert threads.take() is batch
    finally:
        may_go_on.set()
        threads.close()


def test_a_batch_that_failed_is_not_copied_ahead():
    def fill(batch, slot):
        raise ValueError("a broken thread")

    threads = BatchThreads(1)
    try:
        threads.submit(PendingBatch(some_batch(), fill))
        with pytest.raises(ValueError, match="a broken thread"):
            threads._pending[0].wait()
        assert threads.next_filled() is None
    finally:
        threads.close()


@pytest.fixture
def loader(tmp_path):
    dataset = plain_dataset(tmp_path, [10])
    order = SampleOrder(dataset, num_streams=4, seed=0)
    transform = TrainTransform(AugmentConfig(), (8, 8), 0)
    with TrainLoader(dataset, order, transform=transform, batch_images=4, threads=1) as opened:
        yield opened


def wait_until_filled(loader) -> None:
    deadline = time.monotonic() + 20
    while loader._threads.next_filled() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_copying_ahead_takes_nothing_from_the_loader(loader, gpu):
    wait_until_filled(loader)
    loader.copy_ahead(GPU)
    loader.copy_ahead(GPU)
    assert gpu.copies == 1 and loader.position == 0
    batch = next(loader)
    assert batch.positions.tolist() == [0, 1, 2, 3] and loader.position == 4
    images, _ = batch.to(GPU)
    assert torch.equal(images.value, batch.images) and gpu.copies == 1


def test_a_copy_is_forgotten_where_the_loader_goes_on_elsewhere(loader, gpu):
    wait_until_filled(loader)
    loader.copy_ahead(GPU)
    loader.skip_to(8)
    batch = next(loader)
    images, _ = batch.to(GPU)
    assert batch.positions[0] == 8 and torch.equal(images.value, batch.images)
    assert gpu.copies == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_copy_has_the_same_bytes():
    device = torch.device("cuda", torch.cuda.current_device())
    batch = some_batch()
    batch.begin_copy(device)
    images, labels = batch.to(device)
    assert images.is_cuda and torch.equal(images.cpu(), batch.images)
    assert torch.equal(labels.cpu(), batch.labels)
