"""Datasets behind a real nginx: the same as local ones, shared by the processes of a node."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from webdataset import TarWriter

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenShard
from data_pipeline.dataset import open_dataset
from data_pipeline.foreign_index import IndexOptions, index_shards
from data_pipeline.remote.faults import ShardUnavailable
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline import served_dataset
from tests.data_pipeline.fault_proxy import (
    Fault,
    free_port,
    wait_until,
)
from tests.data_pipeline.sample_shards import encode
from tests.data_pipeline.served_dataset import NOISE, SHARD_1, access, images_of

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]


local = served_dataset.local
nginx = served_dataset.nginx
proxy = served_dataset.proxy


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_a_dataset_behind_a_url_is_the_local_one(nginx, local, tmp_path, cached):
    dataset = open_dataset(f"{nginx.url}/train/", access(tmp_path if cached else None))
    assert dataset.digest == local.digest
    assert dataset.place == f"{nginx.url}/train"
    assert images_of(dataset) == images_of(local)
    assert images_of(dataset.select(np.array([1, 5])), range(2)) == images_of(local, iter([1, 5]))
    assert sorted(path.name for path in tmp_path.glob("shards/*")) == sorted(
        f"{entry.sha256}.tar" for entry in local.manifest.shards if cached
    )


def test_the_cache_serves_the_second_run(nginx, local, tmp_path):
    url = f"{nginx.url}/train"
    counts = []
    for _ in range(2):
        assert images_of(open_dataset(url, access(tmp_path))) == images_of(local)
        names = ["index.parquet", *(entry.path for entry in local.manifest.shards)]
        counts.append([nginx.num_requests(name) for name in names])
    assert counts[0] == counts[1]
    (tmp_path / "shards" / f"{local.manifest.shards[1].sha256}.tar").unlink()
    reader = ShardReader(open_dataset(url, access(tmp_path)))
    assert reader.read(4) == reader.read(4) == images_of(local)[4]
    statistics = reader.remote.statistics.read()
    assert (statistics["hits"], statistics["misses"], statistics["shards_fetched"]) == (1, 1, 1)
    assert statistics["bytes_fetched"] == local.manifest.shards[1].num_bytes
    assert statistics["wait_seconds"] > 0
    reader.close()


def test_the_manifest_and_the_index_are_checked_on_arrival(nginx, proxy, local, tmp_path):
    proxy.plan("index.parquet", Fault("corrupt", after_bytes=200), Fault("truncate", 100), None)
    proxy.plan("manifest.json", Fault("truncate", 10), None)
    assert open_dataset(f"{proxy.url}/train", access(tmp_path)).digest == local.digest
    assert len(proxy.gets("index.parquet")) >= 3
    proxy.plan("index.parquet", Fault("corrupt", after_bytes=200))
    with pytest.raises(ShardUnavailable, match="wrong bytes after 3 attempts"):
        open_dataset(f"{proxy.url}/train", access())
    (nginx.root / "page").mkdir()
    (nginx.root / "page" / "manifest.json").write_text("<html>log in</html>")
    with pytest.raises(ShardUnavailable, match="not JSON after 3 attempts"):
        open_dataset(f"{proxy.url}/page", access())


def test_redirects_are_followed_and_forbidden_folders_named(nginx, local):
    moved = open_dataset(f"{nginx.url}/moved/train", access())
    assert images_of(moved, iter([4])) == [images_of(local)[4]]
    with pytest.raises(ShardUnavailable, match="answered 403"):
        open_dataset(f"{nginx.url}/private", access())


def test_absolute_shard_urls_must_be_asked_for(nginx, local, tmp_path):
    """A manifest here, its shards there, one of them with a signed query that nobody may see."""
    shards = [
        replace(entry, path=f"{nginx.url}/train/{entry.path}?sig=hunter2")
        for entry in local.manifest.shards
    ]
    (tmp_path / "index.parquet").write_bytes((local.folder / "index.parquet").read_bytes())
    replace(local.manifest, shards=tuple(shards)).save(tmp_path)
    with pytest.raises(RefusedInput, match=r"lies outside.*absolute_shards") as refused:
        images_of(open_dataset(tmp_path))
    assert "hunter2" not in str(refused.value)
    asked_for = open_dataset(tmp_path, access(absolute_shards=True))
    assert images_of(asked_for, iter([4])) == [images_of(local)[4]]
    (nginx.root / "train" / SHARD_1).rename(nginx.root / "gone.tar")
    try:
        with pytest.raises(BrokenShard) as unavailable:
            images_of(asked_for, iter([4]))
    finally:
        (nginx.root / "gone.tar").rename(nginx.root / "train" / SHARD_1)
    assert "hunter2" not in str(unavailable.value)


def test_foreign_shards_are_indexed_at_their_urls_and_read_from_there(nginx, tmp_path):
    images = [encode(pixels[:64, :64]) for pixels in NOISE[:6]]
    (nginx.root / "theirs").mkdir()
    for number in range(2):
        with TarWriter(str(nginx.root / "theirs" / f"part-{number}.tar")) as tar:
            for at in range(3 * number, 3 * number + 3):
                tar.write({"__key__": f"{at:03d}", "jpg": images[at], "cls": at % 2})
    index_shards(
        f"{nginx.url}/theirs/part-{{0..1}}.tar",
        tmp_path / "indexed",
        IndexOptions("theirs", "train", workers=1),
    )
    with pytest.raises(RefusedInput, match="absolute_shards"):
        images_of(open_dataset(tmp_path / "indexed"))
    for cache in (None, tmp_path / "cache"):
        theirs = open_dataset(tmp_path / "indexed", access(cache, absolute_shards=True))
        assert images_of(theirs) == images and theirs.label.tolist() == [0, 1] * 3
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 2


READ_ALL = """
import sys, hashlib
from pathlib import Path
from data_pipeline.broken import BrokenShard
from data_pipeline.dataset import open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.shard_reader import ShardReader
access = ShardAccess(cache_dir=Path(sys.argv[2]), retry_seconds=60.0)
dataset = open_dataset(sys.argv[1], access)
reader = ShardReader(dataset)
digest = hashlib.sha256()
for row in range(dataset.num_images):
    digest.update(reader.read(row))
print(digest.hexdigest())
"""


def reading_process(url: str, cache_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READ_ALL, url, str(cache_dir)], stdout=subprocess.PIPE, text=True
    )


def test_the_processes_of_a_node_fetch_each_file_once(proxy, tmp_path):
    processes = [reading_process(f"{proxy.url}/train", tmp_path) for _ in range(3)]
    digests = {process.communicate(timeout=200)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0] and len(digests) == 1
    for number in range(4):
        assert len(proxy.gets(f"part-{number:06d}.tar")) == 1
    assert len(proxy.gets("index.parquet")) == 1


def test_a_killed_process_leaves_nothing_that_stays(proxy, local, tmp_path):
    """Killed in the middle of a shard: the next start sweeps, and another process goes on."""
    proxy.plan(SHARD_1, Fault("stall", after_bytes=2_000_000, seconds=200), None)
    process = reading_process(f"{proxy.url}/train", tmp_path)
    wait_until(lambda: bool(proxy.gets(SHARD_1)))
    partial = list(tmp_path.glob("incoming/*.partial"))
    assert len(partial) == 1 and f".{process.pid}." in partial[0].name
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert partial[0].exists()
    dataset = open_dataset(f"{proxy.url}/train", access(tmp_path))
    reader = ShardReader(dataset)
    assert reader.remote is not None and not partial[0].exists()
    assert reader.read(4) == images_of(local)[4]
    reader.close()


def test_nobody_listens(tmp_path):
    with pytest.raises(ShardUnavailable, match=r"manifest\.json cannot be read.*refused"):
        open_dataset(f"http://127.0.0.1:{free_port()}/x", access(tmp_path, retry_seconds=1.0))
