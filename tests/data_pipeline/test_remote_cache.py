"""The cache of a node: its bound, who goes first, what is never removed. Sources: local files."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenShard
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.remote.cache import ShardCache
from data_pipeline.remote.faults import ShardUnavailable
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import Transfers
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline import cached_shards
from tests.data_pipeline.cached_shards import SHARD_BYTES, access, fetch
from tests.data_pipeline.sample_shards import plain_image

pytestmark = pytest.mark.timeout(120)


source = cached_shards.source


def cache_of(tmp_path: Path, num_shards: float = 3) -> ShardCache:
    settings, closing = access(tmp_path, num_shards), threading.Event()
    statistics = RemoteStatistics()
    return ShardCache(settings, Transfers(settings, statistics, closing), statistics, closing)


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
