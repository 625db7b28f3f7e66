"""A dataset behind a real nginx, straight or through a proxy that injects faults."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.fault_proxy import (
    FaultProxy,
    fault_proxy,
)
from tests.data_pipeline.nginx_server import Nginx, nginx_serving
from tests.data_pipeline.sample_shards import encode, write_dataset

SHARD_IMAGES = 3


SHARD_1 = "part-000001.tar"


# Noise does not compress, so that a shard of 4 MB is several pieces of a transfer.
NOISE = np.random.default_rng(0).integers(0, 256, (4 * SHARD_IMAGES, 640, 640, 3), np.uint8)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    root = tmp_path_factory.mktemp("served")
    images = [encode(pixels) for pixels in NOISE]
    shards = [images[at : at + SHARD_IMAGES] for at in range(0, len(images), SHARD_IMAGES)]
    write_dataset(root / "train", shards)
    os.chmod(root, 0o755)
    for parent in root.parents[:3]:
        os.chmod(parent, 0o755)
    with nginx_serving(root, tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def proxy(nginx: Nginx) -> Iterator[FaultProxy]:
    with fault_proxy(nginx.port) as server:
        yield server


@pytest.fixture
def local(nginx: Nginx) -> ShardedDataset:
    return open_dataset(nginx.root / "train")


def access(cache_dir: Path | None = None, **changes: object) -> ShardAccess:
    fast = ShardAccess(cache_dir=cache_dir, retry_seconds=60.0, stall_seconds=30.0)
    return replace(fast, **changes)  # type: ignore[arg-type]


def images_of(dataset: ShardedDataset, rows: Iterator[int] | range | None = None) -> list[bytes]:
    reader = ShardReader(dataset)
    try:
        return [bytes(reader.read(row)) for row in rows or range(dataset.num_images)]
    finally:
        reader.close()
