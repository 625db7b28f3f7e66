"""Small datasets, loaders of them, and the batches that they give."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.data_groups import AugmentConfig, LoaderConfig
from data_pipeline import (
    Batch,
    SampleOrder,
    ShardedDataset,
    TrainLoader,
    TrainTransform,
)
from tests.data_pipeline.sample_shards import (
    BROKEN,
    plain_dataset,
    plain_image,
    write_dataset,
)

SIZE = (4, 5)


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("vitrain-decode")]


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert our_threads() == []


@pytest.fixture
def dataset(tmp_path: Path) -> ShardedDataset:
    """21 one-coloured images, the colour being the row, in uneven shards."""
    return plain_dataset(tmp_path / "plain", [7, 0, 5, 9])


def train_loader(dataset: ShardedDataset, **options: Any) -> TrainLoader:
    order = SampleOrder(dataset, num_streams=3, seed=5)
    settings: dict[str, Any] = {
        "transform": TrainTransform(AugmentConfig(), SIZE, seed=5),
        "batch_images": 4,
        "loader": LoaderConfig(threads=2, read_ahead_batches=2),
    }
    return TrainLoader(dataset, order, **(settings | options))


def take(loader: TrainLoader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("images", "labels", "positions", "rows"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# ------------------------------------------------------------------ broken images


def broken_dataset(folder: Path, broken: set[int], lengths: tuple[int, ...] = (5, 5, 5)) -> Any:
    files = [BROKEN if row in broken else plain_image(row) for row in range(sum(lengths))]
    edges = np.cumsum([0, *lengths]).tolist()
    return write_dataset(folder, [files[a : a + n] for a, n in zip(edges, lengths, strict=False)])
