"""A cache for shards that lie in a local folder."""

from pathlib import Path

import pytest

from data_pipeline.dataset import ShardedDataset
from data_pipeline.location import ShardAccess
from data_pipeline.remote.cache import ShardCache
from tests.data_pipeline.sample_shards import plain_dataset

SHARD_BYTES = 10_240  # tarfile's smallest archive


@pytest.fixture
def source(tmp_path: Path) -> ShardedDataset:
    return plain_dataset(tmp_path / "source", [2] * 6)


def access(tmp_path: Path, num_shards: float = 3, **changes: object) -> ShardAccess:
    fields = {"cache_bytes": int(num_shards * SHARD_BYTES), "retry_seconds": 60.0, **changes}
    return ShardAccess(cache_dir=tmp_path / "cache", stall_seconds=5.0, **fields)  # type: ignore


def fetch(cache: ShardCache, source: ShardedDataset, number: int) -> bool:
    entry = source.manifest.shards[number]
    return cache.fetch(f"file://{source.folder}/{entry.path}", entry)
