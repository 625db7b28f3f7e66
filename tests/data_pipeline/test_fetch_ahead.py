"""Shards that are fetched ahead, along the known order."""

import threading
import time

import numpy as np
import pytest

from data_pipeline.dataset import open_dataset
from data_pipeline.order import SampleOrder
from data_pipeline.passages import passages_of_order, passages_of_rows
from data_pipeline.remote.faults import ShardWrong
from data_pipeline.remote.fetch_ahead import FetchAhead
from data_pipeline.remote.shards import RemoteShards
from tests.data_pipeline import cached_shards
from tests.data_pipeline.cached_shards import access
from tests.data_pipeline.fault_proxy import wait_until
from tests.data_pipeline.sample_shards import plain_dataset

pytestmark = pytest.mark.timeout(120)


source = cached_shards.source


@pytest.mark.parametrize(
    ("shard_images", "num_streams", "world_size"),
    [([5, 0, 3, 7, 1], 4, 2), ([5, 0, 3, 7, 1], 3, 2), ([2, 2], 7, 3), ([9, 8, 9], 1, 1)],
)
def test_passages_are_what_the_order_reads(tmp_path, shard_images, num_streams, world_size):
    dataset = plain_dataset(tmp_path, shard_images)
    order = SampleOrder(dataset, num_streams=num_streams, seed=3)
    shared = np.gcd(num_streams, world_size)
    for epoch in (0, 1):
        positions = np.arange(epoch * order.num_images, (epoch + 1) * order.num_images)
        streams = (positions - epoch * order.num_images) % num_streams
        read = list(zip(positions, streams, dataset.shard[order.rows_at(positions)], strict=True))
        for rank in range(world_size):
            mine = {s for p, s, _ in read if (p - rank) % shared == 0}
            seen: dict[tuple[int, int], list[int]] = {}
            for position, stream, shard in read:
                if stream in mine:
                    seen.setdefault((stream, shard), []).append(position)
            expected = sorted((min(p), max(p), shard) for (_, shard), p in seen.items())
            assert sorted(zip(*order.passages(epoch, rank, world_size), strict=True)) == expected
            first = order.passages(epoch, rank, world_size)[0]
            assert np.all(np.diff(first) >= 0)


def test_passages_of_rows():
    shard = np.array([0, 0, 2, 2, 2, 5], np.int32)
    found = passages_of_rows(shard, 1, 5)
    assert (found.first.tolist(), found.last.tolist(), found.shard.tolist()) == (
        [1, 2], [2 - 1, 4], [0, 2],
    )  # fmt: skip
    assert len(passages_of_rows(shard, 8, 6).shard) == 0


def test_the_next_shards_come_in_the_order_of_their_need(tmp_path):
    dataset = plain_dataset(tmp_path, [4] * 8)
    order = SampleOrder(dataset, num_streams=2, seed=0)
    fetched: list[int] = []
    lock = threading.Lock()

    def fetch(shard: int) -> None:
        with lock:
            fetched.append(shard)

    passages = passages_of_order(order, 0, 1)
    ahead = FetchAhead(passages, fetch, [100] * 8, max_bytes=400)
    try:
        ahead.move_to(0)
        wait_until(lambda: len(fetched) == 4)
        expected = list(dict.fromkeys(passages(0).shard.tolist()))
        assert set(fetched) == set(expected[:4]), "two streams, each its shard and the next"
        for position in range(1, 7):
            ahead.move_to(position)
        time.sleep(0.1)
        assert len(fetched) == 4, "nothing changes before a shard is done with"
        ahead.move_to(8)  # both streams enter their second shard
        wait_until(lambda: len(fetched) == 6)
        assert set(fetched) == set(expected[:6])
        ahead.move_to(32 - 2)
        wait_until(lambda: set(fetched[-2:]) <= set(passages(32).shard[:2].tolist()))
    finally:
        ahead.close()


def test_a_failure_ahead_ends_nothing_that_has_not_waited_for_it(tmp_path, source, caplog):
    """What was gone when it was fetched ahead, and is back when it is needed, is read."""
    dataset = open_dataset(f"file://{source.folder}", access(tmp_path))
    shard = source.folder / source.manifest.shards[2].path
    shard.rename(tmp_path / "away.tar")
    remote = RemoteShards(dataset)
    remote.follow(lambda _: passages_of_rows(dataset.shard, 0, 12))
    remote.move_to(4)
    wait_until(lambda: "fetching ahead" in caplog.text)
    with pytest.raises(ShardWrong, match=r"part-000002.tar cannot be read: gave up after 3"):
        remote.read(2, 512, 10)
    (tmp_path / "away.tar").rename(shard)
    assert len(remote.read(2, 512, 10)) == 10
    remote.close()
