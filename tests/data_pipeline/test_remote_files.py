"""Builds from URLs: fsspec's memory files, and a web server."""

import functools
import http.server
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset
from tests.data_pipeline import memory_store, photo_builds
from tests.data_pipeline.photo_builds import build_photos, files_of
from tests.data_pipeline.quick_transfers import (
    of_aiohttp,
    read_sources_by,
    transfers_that_try,
)

expected = photo_builds.expected
memory = memory_store.memory
photos = photo_builds.photos


def upload(photos: Path, url: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    for path in photos.rglob("*"):
        if path.is_file():
            files.pipe_file(f"{root}/{path.relative_to(photos)}", path.read_bytes())


def test_input_from_a_url_is_the_same_as_from_a_folder(photos, memory, tmp_path, expected):
    upload(photos, "memory://photos")
    summary = build_photos("memory://photos", tmp_path / "out")
    ours, theirs = files_of(tmp_path / "out"), dict(expected)
    assert [file.where for file in summary.skipped] == ["memory://photos/train/class2/notes.txt"]
    for files in (ours, theirs):
        del files["skipped.jsonl"]
    assert ours == theirs
    by_size = build_photos(
        "memory://photos", tmp_path / "sizes", shard_images=None, shard_bytes=70_000
    )
    assert by_size.manifest.num_images == 12


@pytest.mark.parametrize(
    ("split", "message"),
    [("nope", "memory://photos/nope does not exist; memory://photos has the splits train, val")],
)
def test_a_split_that_a_url_lacks_is_refused(photos, memory, tmp_path, split, message):
    upload(photos, "memory://photos")
    with pytest.raises(RefusedInput, match=message):
        build_dataset("image-folder", "memory://photos", split, tmp_path / "out")


def test_an_empty_url_and_other_sources_are_refused(memory, tmp_path):
    with pytest.raises(RefusedInput, match="memory://nothing holds no class folders"):
        build_dataset("image-folder", "memory://nothing", "train", tmp_path / "out")
    with pytest.raises(RefusedInput, match=r"only image-folder, .* are read from URLs"):
        build_dataset("cifar10", "memory://photos", "train", tmp_path / "out")


def test_a_bad_hour_of_the_network_ends_a_build_instead_of_losing_images(
    photos, memory, tmp_path, monkeypatch, expected
):
    upload(photos, "memory://photos")
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 4))
    real, failures = MemoryFileSystem.cat_file, []

    def flaky(self, path, *args, **kwargs):
        if path.endswith("class1/0.jpg") and len(failures) < limit:
            failures.append(path)
            raise failure
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    limit, failure = 100, ConnectionResetError("by peer")
    told = r"class1/0.jpg cannot be read: gave up after 4 .*; last cause: .*peer.* goes on behind"
    with pytest.raises(RefusedInput, match=told):
        build_photos("memory://photos", tmp_path / "out")
    assert len(failures) == 4
    failures.clear()
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 9))
    failure = OSError("the server answered 403 Forbidden: the token has run out")
    failure.__cause__ = of_aiohttp(403)
    with pytest.raises(RefusedInput, match=r"class1/0.jpg cannot be read: gave up after 3 .* 403"):
        build_photos("memory://photos", tmp_path / "out")
    failures.clear()
    limit, failure = 5, ConnectionResetError("by peer")
    assert build_photos("memory://photos", tmp_path / "out").manifest.num_images == 12
    assert (tmp_path / "out/train-000000.tar").read_bytes() == expected["train-000000.tar"]


def test_a_file_that_went_after_it_was_listed_is_left_out(photos, memory, tmp_path, monkeypatch):
    upload(photos, "memory://photos")
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 9))
    real = MemoryFileSystem.cat_file

    def gone(self, path, *args, **kwargs):
        if path.endswith("class1/0.jpg"):
            raise FileNotFoundError(path)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", gone)
    summary = build_photos("memory://photos", tmp_path / "out")
    assert summary.manifest.num_images == 11
    reasons = {file.where: file.reason for file in summary.skipped}
    assert "after 3 attempts" in reasons["memory://photos/train/class1/0.jpg"]


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_input_from_a_web_server(photos, tmp_path, expected):
    """Names with spaces come percent-encoded in the server's listing."""
    (photos / "train/class1").rename(photos / "train/class 1")
    (photos / "val/class1").rename(photos / "val/class 1")
    for split in ("train", "val"):  # "!" sorts behind a space, and before what stands for one
        (photos / split / "class2").rename(photos / split / "class!2")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=photos)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        summary = build_photos(url, tmp_path / "out")
        server.shutdown()
    assert summary.manifest.classes == ("class 1", "class!2", "class0")
    build_photos(photos, tmp_path / "local")
    for name in ("train-000000.tar", "train-000001.tar", "index.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
