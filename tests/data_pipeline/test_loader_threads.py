"""Errors in the loader's threads, and that none of them is left behind."""

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from configs.data_groups import AugmentConfig
from data_pipeline import (
    LoadingFailed,
    SampleOrder,
    ShardedDataset,
    TrainTransform,
)
from tests.data_pipeline import loader_batches
from tests.data_pipeline.loader_batches import SIZE, our_threads, train_loader

dataset = loader_batches.dataset
no_thread_survives = loader_batches.no_thread_survives


# ------------------------------------------------------------------ errors and ends


class FailingTransform(TrainTransform):
    """Fails at one position, as a bug of ours would."""

    fails_at = 6

    def __call__(self, image: torch.Tensor, position: int, out: torch.Tensor) -> None:
        if position == self.fails_at:
            raise ZeroDivisionError("a bug")
        super().__call__(image, position, out)


class SlowTransform(TrainTransform):
    """Counts and delays views."""

    seconds = 0.05
    count = 0

    def __call__(self, image: torch.Tensor, position: int, out: torch.Tensor) -> None:
        time.sleep(self.seconds)
        self.count += 1
        super().__call__(image, position, out)


def test_an_error_in_a_thread_names_shard_and_key(dataset: ShardedDataset) -> None:
    row = SampleOrder(dataset, num_streams=3, seed=5).row_at(FailingTransform.fails_at)
    loader = train_loader(dataset, transform=FailingTransform(AugmentConfig(), SIZE, 5))
    with loader:
        assert next(loader).positions.tolist() == [0, 1, 2, 3]
        with pytest.raises(LoadingFailed, match="ZeroDivisionError: a bug") as failed:
            next(loader)
        assert f"{row:08d}" in str(failed.value)
        assert f"part-{dataset.shard[row]:06d}.tar" in str(failed.value)
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
        assert our_threads() == []
        with pytest.raises(RuntimeError, match="closed"):
            next(loader)


def test_read_ahead_is_bounded(dataset: ShardedDataset) -> None:
    transform = SlowTransform(AugmentConfig(), SIZE, 5)
    transform.seconds = 0.0
    with train_loader(dataset, transform=transform) as loader:
        for expected in (8, 12, 16):  # two batches of four ahead of what was taken
            deadline = time.monotonic() + 10
            while transform.count < expected and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.02)
            assert transform.count == expected
            next(loader)


def test_waiting_is_measured(dataset: ShardedDataset) -> None:
    slow = SlowTransform(AugmentConfig(), SIZE, 5)
    with train_loader(dataset, transform=slow) as loader:
        assert next(loader).wait_seconds > 0.03
    with train_loader(dataset) as loader:
        time.sleep(0.3)
        assert next(loader).wait_seconds < 0.03


def test_close_ends_threads_at_once_and_may_be_repeated(dataset: ShardedDataset) -> None:
    slow = SlowTransform(AugmentConfig(), SIZE, 5)
    loader = train_loader(dataset, transform=slow, batch_images=500)
    assert len(our_threads()) == 2
    start = time.perf_counter()
    loader.close()
    loader.close()
    assert time.perf_counter() - start < 2  # the work in the queue would take 25 s
    assert our_threads() == []


def test_threads_end_with_a_consumer_that_fails(dataset: ShardedDataset) -> None:
    def consume() -> None:
        with train_loader(dataset) as loader:
            next(loader)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert our_threads() == []


def test_threads_end_with_a_forgotten_loader(dataset: ShardedDataset) -> None:
    slow = SlowTransform(AugmentConfig(), SIZE, 5)
    loader = train_loader(dataset, transform=slow, batch_images=500)
    assert our_threads()
    del loader
    assert our_threads() == []


def test_threads_end_with_a_consumer_thread_that_dies(dataset: ShardedDataset) -> None:
    def consume() -> None:
        next(train_loader(dataset))

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join(20)
    assert our_threads() == []


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("", marks=pytest.mark.slow),
        "raise RuntimeError('the consumer died')",
        pytest.param("sys.exit(3)", marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_though_nobody_closed(dataset: ShardedDataset, ending: str) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from configs.data_groups import AugmentConfig, LoaderConfig
        from data_pipeline import SampleOrder, TrainLoader, TrainTransform, open_dataset
        dataset = open_dataset({str(dataset.folder)!r})
        loader = TrainLoader(
            dataset,
            SampleOrder(dataset, num_streams=3, seed=0),
            transform=TrainTransform(AugmentConfig(), (4, 4), 0),
            batch_images=2000,
            loader=LoaderConfig(threads=3),
        )
        next(loader)
        print("got one", flush=True)
        {ending}
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        timeout=240,  # importing torch takes a minute beside enough other work
        capture_output=True,
        text=True,
    )
    assert done.stdout == "got one\n"
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(ending, 1), done.stderr
