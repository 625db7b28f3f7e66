"""The cache of a node: its bound, who goes first, what is never removed. Sources: local files."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenShard
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.order import SampleOrder
from data_pipeline.passages import passages_of_order, passages_of_rows
from data_pipeline.remote.cache import ShardCache
from data_pipeline.remote.faults import ShardUnavailable, ShardWrong
from data_pipeline.remote.fetch_ahead import FetchAhead
from data_pipeline.remote.shards import RemoteShards
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import Transfers
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.fault_proxy import wait_until
from tests.data_pipeline.sample_shards import plain_dataset, plain_image

pytestmark = pytest.mark.timeout(120)

SHARD_BYTES = 10_240  # tarfile's smallest archive


@pytest.fixture
def source(tmp_path: Path) -> ShardedDataset:
    return plain_dataset(tmp_path / "source", [2] * 6)


def access(tmp_path: Path, num_shards: float = 3, **changes: object) -> ShardAccess:
    fields = {"cache_bytes": int(num_shards * SHARD_BYTES), "retry_seconds": 60.0, **changes}
    return ShardAccess(cache_dir=tmp_path / "cache", stall_seconds=5.0, **fields)  # type: ignore


def cache_of(tmp_path: Path, num_shards: float = 3) -> ShardCache:
    settings, closing = access(tmp_path, num_shards), threading.Event()
    statistics = RemoteStatistics()
    return ShardCache(settings, Transfers(settings, statistics, closing), statistics, closing)


def fetch(cache: ShardCache, source: ShardedDataset, number: int) -> bool:
    entry = source.manifest.shards[number]
    return cache.fetch(f"file://{source.folder}/{entry.path}", entry)


def held(cache: ShardCache, source: ShardedDataset) -> list[int]:
    return [n for n, entry in enumerate(source.manifest.shards) if cache.holds(entry)]


def test_the_least_recently_used_shard_goes_first(tmp_path, source):
    cache = cache_of(tmp_path)
    for number in (0, 1, 2):
        assert fetch(cache, source, number)
        os.utime(cache._path(source.manifest.shards[number]), (number, number))
    os.close(cache.open(source.manifest.shards[0]))  # used just now
    assert fetch(cache, source, 3)
    assert held(cache, source) == [0, 2, 3]
    assert fetch(cache, source, 4)
    assert held(cache, source) == [0, 3, 4]


def test_a_shard_that_is_read_stays(tmp_path, source):
    cache, other = cache_of(tmp_path), cache_of(tmp_path)
    for number in (0, 1, 2):
        fetch(cache, source, number)
        os.utime(cache._path(source.manifest.shards[number]), (number, number))
    descriptors = [other.open(source.manifest.shards[number]) for number in (0, 1)]
    assert fetch(cache, source, 3)
    assert held(cache, source) == [0, 1, 3]
    descriptors.append(other.open(source.manifest.shards[3]))
    assert not fetch(cache, source, 4), "all that is there is being read"
    assert held(cache, source) == [0, 1, 3]
    for descriptor in descriptors:
        os.close(descriptor)
    assert fetch(cache, source, 4)


def test_a_smaller_bound_holds_at_once_and_what_fits_in_no_bound_is_not_fetched(tmp_path, source):
    cache = cache_of(tmp_path)
    for number in range(3):
        fetch(cache, source, number)
    assert len(held(cache_of(tmp_path, 1.5), source)) == 1
    assert not fetch(cache_of(tmp_path, 0.5), source, 4)


def test_what_is_on_its_way_counts(tmp_path, source):
    cache = cache_of(tmp_path, 2)
    partial, descriptor = cache._new_partial(source.manifest.shards[5])
    assert fetch(cache, source, 0) and fetch(cache, source, 1)
    assert held(cache, source) == [1]
    cache_of(tmp_path, 2)  # a start does not sweep what is alive
    assert partial.exists()
    os.close(descriptor)
    cache_of(tmp_path, 2)
    assert not partial.exists()


def test_a_shard_cut_short_on_the_disk_is_fetched_again(tmp_path, source):
    cache = cache_of(tmp_path)
    fetch(cache, source, 0)
    os.truncate(cache._path(source.manifest.shards[0]), 100)
    assert cache.open(source.manifest.shards[0]) is None
    assert fetch(cache, source, 0)
    os.close(cache.open(source.manifest.shards[0]))


def test_a_digest_that_is_none_names_no_file(tmp_path, source):
    entry = replace(source.manifest.shards[0], sha256="../../../etc/x")
    with pytest.raises(RefusedInput, match="is no SHA-256"):
        cache_of(tmp_path).fetch("file:///x", entry)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RefusedInput, match=r"data\.cache_dir = .* cannot be written"):
        cache_of(tmp_path)


def test_waiting_for_a_process_that_stands_still_ends(tmp_path, source):
    cache = cache_of(tmp_path)
    cache._patience = replace(cache._patience, seconds=0.5)
    with (
        cache._only_fetcher("file:///x", source.manifest.shards[0]),
        pytest.raises(ShardUnavailable, match="by another process of this node"),
    ):
        fetch(cache, source, 0)


def test_a_cache_that_is_too_small_is_slow_but_right(tmp_path, source):
    dataset = open_dataset(f"file://{source.folder}", access(tmp_path, 0.5))
    reader = ShardReader(dataset)
    assert [reader.read(row) for row in range(12)] == [plain_image(row) for row in range(12)]
    assert reader.remote.statistics.read()["straight_reads"] == 12
    reader.close()


def test_many_threads_share_a_tight_cache(tmp_path, source):
    """Six shards in room for two, eight threads: right bytes, and the bound holds throughout."""
    reader = ShardReader(open_dataset(f"file://{source.folder}", access(tmp_path, 2)))
    wrong, most = [], [0]

    def read_all(start: int) -> None:
        for turn in range(24):
            row = (start + turn * 5) % 12
            if reader.read(row) != plain_image(row):
                wrong.append(row)
            # An upper bound of the sum: a name may go while the others are looked at.
            names = os.listdir(tmp_path / "cache" / "shards")
            most[0] = max(most[0], SHARD_BYTES * len(names))

    threads = [threading.Thread(target=read_all, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert wrong == [] and 0 < most[0] <= 2 * SHARD_BYTES
    statistics = reader.remote.statistics.read()
    assert statistics["hits"] + statistics["misses"] == 8 * 24
    reader.close()


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


def test_threads_that_wait_for_a_shard_share_its_failure(tmp_path, source):
    cache, attempts, met = cache_of(tmp_path), [], []
    waiting = threading.Semaphore(0)

    def download(*_: object) -> None:
        attempts.append(1)
        for _ in range(8 if len(attempts) == 1 else 0):  # all are here before the first one fails
            waiting.acquire(timeout=60)
        time.sleep(0.2)
        raise ShardUnavailable("the server is down")

    cache._transfers.download = download  # type: ignore[method-assign]

    def ask() -> None:
        waiting.release()
        with pytest.raises(ShardUnavailable, match="the server is down") as failure:
            fetch(cache, source, 0)
        met.append(failure.value)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(met) == 8
    assert len(attempts) < 8, "each of them spent a budget of its own"


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_a_file_that_is_shorter_than_the_manifest_says(tmp_path, source, cached):
    settings = access(tmp_path) if cached else replace(access(tmp_path), cache_dir=None)
    dataset = open_dataset(f"file://{source.folder}", settings)
    os.truncate(source.shard_path(2), int(source.offset[5]) + 10)
    reader = ShardReader(dataset)
    told = f"cannot be read: gave up after 3 .*it has only {int(source.offset[5]) + 10} bytes"
    with pytest.raises(BrokenShard, match=told):
        reader.read(5)
    reader.close()


def test_a_full_disk_is_named(tmp_path, source, monkeypatch):
    cache = cache_of(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "lseek", lambda *_: 0)
    monkeypatch.setattr(cache, "_new_partial", lambda _: (tmp_path / "x.partial", full))
    told = r"x\.partial cannot be written: No space left.*data\.cache_bytes or .*data\.cache_dir"
    with pytest.raises(RefusedInput, match=told):
        fetch(cache, source, 0)


def test_commands_run_only_when_allowed_and_whole(tmp_path, source):
    good = f"pipe:cat {source.folder}/{source.manifest.shards[0].path}"
    shards = [replace(source.manifest.shards[0], path=good), *source.manifest.shards[1:]]
    for number, path in ((1, "pipe:exit 3"), (2, "pipe:sleep 60"), (3, "pipe:echo hello")):
        shards[number] = replace(shards[number], path=path)
    replace(source.manifest, shards=tuple(shards)).save(source.folder)
    with pytest.raises(RefusedInput, match="allow-commands"):
        ShardReader(open_dataset(source.folder, access(tmp_path))).read(0)
    settings = replace(access(tmp_path), allow_commands=True, stall_seconds=0.5, retry_seconds=1.0)
    reader = ShardReader(open_dataset(source.folder, settings))
    assert reader.read(1) == plain_image(1)
    failures = {2: "exit code 3", 4: "printed nothing for 0.5 s", 6: "body ended at byte 6"}
    for row, cause in failures.items():
        with pytest.raises(ShardUnavailable, match=f"a pipe: command cannot be read.*{cause}"):
            reader.read(row)
    assert reader.read(8) == plain_image(8), "local shards are read beside them"
    reader.close()
