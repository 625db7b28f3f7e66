"""A dataset opened by its URL, and its shards on their way into the cache; files as servers."""

import hashlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.broken import BrokenShard
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.remote.cache import ShardCache
from data_pipeline.remote.faults import ShardUnavailable, ShardWrong
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import Transfers
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.quick_transfers import short_pauses
from tests.data_pipeline.sample_shards import plain_dataset, plain_image


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardedDataset:
    short_pauses(monkeypatch)
    return plain_dataset(tmp_path / "source", [2] * 3)


def access(tmp_path: Path) -> ShardAccess:
    return ShardAccess(cache_dir=tmp_path / "cache", retry_seconds=60.0, stall_seconds=30.0)


def cache_of(tmp_path: Path) -> ShardCache:
    settings, closing, statistics = access(tmp_path), threading.Event(), RemoteStatistics()
    return ShardCache(settings, Transfers(settings, statistics, closing), statistics, closing)


def url_of(source: ShardedDataset, number: int) -> str:
    return f"file://{source.shard_path(number)}"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files_below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_a_shard_of_other_bytes_is_broken_data_and_stays_out(tmp_path, source):
    flip_a_bit(source.shard_path(1))
    cache, entry = cache_of(tmp_path), source.manifest.shards[1]
    with pytest.raises(
        ShardWrong, match=r"wrong bytes: 3 attempts, the last with .* manifest says"
    ):
        cache.fetch(url_of(source, 1), entry)
    assert cache.open(entry) is None
    assert [name for name in files_below(tmp_path / "cache") if "lock" not in name] == []
    reader = ShardReader(open_dataset(f"file://{source.folder}", access(tmp_path)))
    assert reader.read(1) == plain_image(1)
    with pytest.raises(BrokenShard, match="wrong bytes"):
        reader.read(2)
    reader.close()


def test_a_shard_is_nobodys_before_it_is_whole(tmp_path, source):
    """Under a name of its own host and process, which no other use of the cache takes for it."""
    cache, entry, seen = cache_of(tmp_path), source.manifest.shards[1], []
    download = cache._transfers.download

    def looked_at(location, sink, *expected) -> None:
        seen.append((cache.open(entry), [p.name for p in cache._incoming.glob("*.partial")]))
        download(location, sink, *expected)
        seen.append((cache.open(entry), os.listdir(cache._shards)))

    cache._transfers.download = looked_at  # type: ignore[method-assign]
    assert cache.fetch(url_of(source, 1), entry)
    (_, (partial,)), (_, shards) = seen
    assert [found for found, _ in seen] == [None, None] and shards == []
    assert partial.startswith(f"{entry.sha256}.{os.uname().nodename}.{os.getpid()}.")
    first, second = (cache._new_partial(entry) for _ in range(2))
    assert first[0] != second[0], "threads of a process differ too"
    for _, descriptor in (first, second):
        os.close(descriptor)
    descriptor = cache.open(entry)
    assert descriptor is not None
    assert hashlib.sha256(os.read(descriptor, entry.num_bytes + 1)).hexdigest() == entry.sha256
    os.close(descriptor)


def test_ranks_that_want_a_shard_share_its_download(tmp_path, source):
    """Four caches on one folder, as four ranks of a node have them."""
    caches, entry, downloads = [cache_of(tmp_path) for _ in range(4)], source.manifest.shards[1], []

    def slow(download):
        def call(*arguments) -> None:
            downloads.append(1)
            time.sleep(0.2)
            download(*arguments)

        return call

    def fetch(cache: ShardCache) -> None:
        if cache.fetch(url_of(source, 1), entry):
            have.append(cache.holds(entry))

    have: list[bool] = []
    for cache in caches:
        cache._transfers.download = slow(cache._transfers.download)  # type: ignore[method-assign]
    threads = [threading.Thread(target=fetch, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert have == [True] * 4 and downloads == [1]


def test_a_transfer_that_fails_leaves_nothing(tmp_path, source):
    cache, entry = cache_of(tmp_path), source.manifest.shards[1]
    source.shard_path(1).rename(tmp_path / "away.tar")
    with pytest.raises(ShardWrong, match="gave up after 3"):
        cache.fetch(url_of(source, 1), entry)
    assert not any(cache._incoming.glob("*.partial"))
    (tmp_path / "away.tar").rename(source.shard_path(1))
    assert cache.fetch(url_of(source, 1), entry)


def test_an_index_of_other_bytes_is_refused(tmp_path, source):
    index = source.folder / "index.parquet"
    sound = index.read_bytes()
    other = plain_dataset(tmp_path / "other", [1, 3, 2])
    for data in ((other.folder / "index.parquet").read_bytes(), sound[:-100], b""):
        index.write_bytes(data)
        with pytest.raises(ShardUnavailable, match=r"index\.parquet has wrong bytes after 3 att"):
            open_dataset(f"file://{source.folder}", access(tmp_path))
    index.write_bytes(sound)
    assert open_dataset(f"file://{source.folder}", access(tmp_path)).digest == source.digest


def test_a_manifest_that_is_none_is_refused(tmp_path, source):
    manifest = source.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:200])
    with pytest.raises(ShardUnavailable, match=r"manifest\.json is not JSON after 3 attempts"):
        open_dataset(f"file://{source.folder}", access(tmp_path))


def test_what_a_crash_left_of_an_index_is_swept(tmp_path, source):
    open_dataset(f"file://{source.folder}", access(tmp_path))
    (folder,) = (tmp_path / "cache" / "datasets").iterdir()
    (folder / "incoming-dead").mkdir()
    (folder / "incoming-dead" / "index.parquet").write_bytes(b"PAR1")
    (folder / "index.parquet").write_bytes(b"PAR1")
    dataset = open_dataset(f"file://{source.folder}", access(tmp_path))
    assert dataset.digest == source.digest
    assert not any(folder.glob("incoming-*"))


def test_a_dataset_that_changed_on_its_server_is_not_mixed_with_its_older_self(tmp_path, source):
    old = open_dataset(f"file://{source.folder}", access(tmp_path))
    replace(source.manifest, name="renamed").save(source.folder)
    new = open_dataset(f"file://{source.folder}", access(tmp_path))
    assert old.folder != new.folder and new.manifest.name == "renamed"
