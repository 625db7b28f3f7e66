"""What reading shards from a bucket must do, whoever the bucket belongs to."""

import time
from dataclasses import replace
from pathlib import Path

from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.fault_proxy import Fault, FaultProxy
from tests.data_pipeline.sample_shards import plain_image

SHARD_1 = "part-000001.tar"  # of three, with two images each
PASSING_FAULTS = {
    "503": Fault("status", status=503, headers={"Retry-After": "1"}),
    "429": Fault("status", status=429, headers={"Retry-After": "1"}),
    "reset": Fault("reset", after_bytes=1000),
    "truncated": Fault("truncate", after_bytes=1000),
    "stall": Fault("stall", after_bytes=1000, seconds=60),
    "wrong bytes": Fault("corrupt", after_bytes=2000),
}


def access(cache_dir: Path | None = None, **changes: object) -> ShardAccess:
    settings = ShardAccess(cache_dir=cache_dir, retry_seconds=60.0, stall_seconds=30.0)
    return replace(settings, **changes)  # type: ignore[arg-type]


def check_reading(
    url: str, local: ShardedDataset, proxy: FaultProxy, cache_dir: Path | None
) -> None:
    """All images are those of the dataset that was uploaded, and a shard is fetched once."""
    dataset = open_dataset(url, access(cache_dir))
    assert dataset.digest == local.digest
    reader = ShardReader(dataset)
    assert [reader.read(row) for row in range(6)] == [plain_image(row) for row in range(6)]
    assert len(proxy.gets(SHARD_1)) == (1 if cache_dir else 2)
    reader.close()


def check_outliving(url: str, kind: str, proxy: FaultProxy, cache_dir: Path) -> None:
    """A fault costs one repeat, and that is ours: no client makes any that nobody counts."""
    dataset = open_dataset(url, access(cache_dir))
    settings = access(cache_dir, stall_seconds=3.0 if kind == "stall" else 30.0)
    dataset.origin = replace(dataset.origin, access=settings)
    fault = PASSING_FAULTS[kind]
    proxy.plan(SHARD_1, fault, None)
    reader = ShardReader(dataset)
    started = time.monotonic()
    assert [reader.read(row) for row in (2, 3)] == [plain_image(2), plain_image(3)]
    assert time.monotonic() - started >= (1 if fault.headers else 0)
    assert reader.remote.statistics.read()["retries"] == len(proxy.gets(SHARD_1)) - 1
    reader.close()
