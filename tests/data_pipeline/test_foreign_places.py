"""Foreign shards at URLs: indexed where they lie."""

import functools
import http.server
import tempfile
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.errors import RefusedInput
from data_pipeline.foreign_index import index_shards
from data_pipeline.index import open_dataset, read_index
from data_pipeline.location import ShardAccess
from data_pipeline.manifest import Manifest
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline import foreign_samples
from tests.data_pipeline.foreign_samples import OPTIONS, write_shards
from tests.data_pipeline.quick_transfers import read_sources_by, transfers_that_try

samples = foreign_samples.samples


def on_a_server(folder: Path) -> str:
    """Put the shards of a folder behind URLs of fsspec's memory; gives a pattern for them."""
    files = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        files.pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())
    return f"memory://{folder.name}/theirs-*.tar"


def test_remote_shards_are_indexed_where_they_lie(tmp_path, samples, monkeypatch):
    write_shards(tmp_path / "bucket-a", samples)
    pattern = on_a_server(tmp_path / "bucket-a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    summary = index_shards(pattern, tmp_path / "remote", OPTIONS)
    assert "reading them takes --data.absolute-shards" in summary.text()
    index_shards(str(tmp_path / "bucket-a/*.tar"), tmp_path / "local", OPTIONS)
    assert not any((tmp_path / "temporary").iterdir())
    remote, local = Manifest.load(tmp_path / "remote"), Manifest.load(tmp_path / "local")
    assert [shard.path for shard in remote.shards] == [
        "memory://bucket-a/theirs-000.tar",
        "memory://bucket-a/theirs-001.tar",
    ]
    assert remote.digest == local.digest  # the same data wherever it lies
    assert read_index(tmp_path / "remote").equals(read_index(tmp_path / "local"))
    asked_for = ShardAccess(absolute_shards=True)
    here, there = (ShardReader(open_dataset(tmp_path / n, asked_for)) for n in ("local", "remote"))
    assert [there.read(row) for row in range(5)] == [here.read(row) for row in range(5)]
    braces = pattern.replace("*", "{000..001}")
    assert index_shards(braces, tmp_path / "remote", OPTIONS).already_built
    fsspec.filesystem("memory").pipe_file("/bucket-a/theirs-001.tar", b"another")
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*fingerprint"):
        index_shards(pattern, tmp_path / "remote", OPTIONS)


def test_a_shard_that_arrives_in_part_is_asked_for_again(tmp_path, samples, monkeypatch):
    write_shards(tmp_path / "bucket-b", samples)
    pattern = on_a_server(tmp_path / "bucket-b")
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 4))
    plain, calls = MemoryFileSystem.cat_file, []

    def cut(self, path, start=None, end=None, **options):
        calls.append(path)
        if len(calls) == 1:
            raise ConnectionResetError("reset by peer")
        data = plain(self, path, start, end, **options)
        return data[:700] if len(calls) < always_until and start == 0 else data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut)
    always_until = 3
    index_shards(pattern, tmp_path / "i", OPTIONS)
    assert len(calls) == 4  # the first shard three times, the last time from byte 700 on
    assert open_dataset(tmp_path / "i").label.tolist() == [0, 1, 0, 1, 0]

    def stuck(self, path, **options):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", stuck)
    with pytest.raises(RefusedInput, match=r"000.tar cannot be read: gave up after 4 .* by peer"):
        index_shards(pattern, tmp_path / "j", OPTIONS)
    assert not (tmp_path / "j").exists()


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_shards_of_a_web_server(tmp_path, samples):
    write_shards(tmp_path / "tars", samples)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "tars")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        index_shards(url + "/theirs-{000..001}.tar", tmp_path / "braces", OPTIONS)
        with pytest.raises(RefusedInput, match=r"there is no file http.*theirs-002\.tar"):
            index_shards(url + "/theirs-{000..002}.tar", tmp_path / "missing", OPTIONS)
        server.shutdown()
    manifest = Manifest.load(tmp_path / "braces")
    assert [shard.path for shard in manifest.shards] == [
        f"{url}/theirs-000.tar",
        f"{url}/theirs-001.tar",
    ]
    assert manifest.num_images == 5
