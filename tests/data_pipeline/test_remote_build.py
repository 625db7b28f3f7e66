"""Builds from URLs and to URLs: fsspec's memory files, a web server, and one that speaks S3."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.errors import RefusedInput
from data_pipeline import remote_store
from data_pipeline.build import build_dataset, build_part
from data_pipeline.merge import merge_parts
from data_pipeline.output_folder import Part
from data_pipeline.output_store import open_store
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline.quick_transfers import (
    of_aiohttp,
    read_sources_by,
    transfers_that_try,
)
from tests.data_pipeline.s3_server import s3_server


@pytest.fixture
def photos(tmp_path):
    root = layouts.image_folder(tmp_path / "photos")
    layouts.write(root / "train/class2/notes.txt", b"roses")
    return root


@pytest.fixture
def expected(photos, tmp_path):
    build_photos(photos, tmp_path / "expected")
    return files_of(tmp_path / "expected")


@pytest.fixture
def memory():
    """An empty store of this process; gives its content by name."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield lambda: {path.lstrip("/"): files.cat_file(path) for path in files.find("/")}
    files.store.clear()


def build_photos(photos, output, **options):
    options = {"shard_images": 3, "workers": 1, **options}
    return build_dataset("image-folder", photos, "train", output, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def below(prefix: str, content: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix(f"{prefix}/"): content[name] for name in content}


def test_output_to_a_url_is_the_same_as_to_a_folder(photos, memory, expected):
    summary = build_photos(photos, "memory://bucket/out")
    assert below("bucket/out", memory()) == expected
    assert "to memory://bucket/out in" in summary.text()
    assert build_photos(photos, "memory://bucket/out/").already_built
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*shuffle_seed"):
        build_photos(photos, "memory://bucket/out", seed=3)


def test_parts_meet_at_a_url(photos, memory, expected):
    for number in (3, 1, 2):
        part = Part(number, 3)
        options = {"shard_images": 3, "workers": 1}
        build_part("image-folder", photos, "train", "memory://out", part, **options)
    with pytest.raises(RefusedInput, match="unfinished build of something else"):
        build_photos(photos, "memory://out", seed=9)
    merge_parts("memory://out")
    assert below("out", memory()) == expected


class Killed(BaseException):
    pass


@pytest.mark.parametrize("num_objects", range(0, 16, 3))
def test_an_interrupted_upload_is_gone_on_with(photos, memory, expected, monkeypatch, num_objects):
    """Interrupted before object 0, 3, 6 ...: shards, records, and what ends a build."""
    done = []

    def step(real, *args, **options):
        if len(done) == num_objects:
            raise Killed
        done.append(args)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        for name in ("create", "write"):
            real = getattr(remote_store.RemoteStore, name)
            patch.setattr(
                remote_store.RemoteStore, name, functools.partialmethod(step_of(step, real))
            )
        with pytest.raises(Killed):
            build_photos(photos, "memory://out")
            assert num_objects > 12
            raise Killed
    assert not any(name.endswith("manifest.json") for name in memory()) or num_objects > 12
    build_photos(photos, "memory://out")
    assert below("out", memory()) == expected


def step_of(step, real):
    return lambda self, *args, **options: step(real, self, *args, **options)


def test_an_object_is_complete_or_absent(memory):
    store = open_store("memory://out")
    with pytest.raises(Killed):
        with store.create("shard.tar") as file:
            file.write(b"half")
            raise Killed
    assert memory() == {} and store.size("shard.tar") is None
    with store.create("shard.tar") as file:
        file.write(b"whole")
    assert memory() == {"out/shard.tar": b"whole"}


def test_a_store_that_fails_is_a_message(photos, memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no write access to bucket")

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "_open", refuse)
    with pytest.raises(RefusedInput, match=r"memory://out cannot be written: .*no write access"):
        build_photos(photos, "memory://out")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://server/shards", "a web server can be read, not written"),
        ("s3://key:secret@bucket/x", r"--output s3://\*\*\*@bucket/x: give a plain URL"),
        ("simplecache::s3://bucket/x", "give a plain URL"),
        ("s3://bucket/x?signature=secret", "--output s3://bucket/x: give a plain URL"),
        ("nosuch://bucket/x", "nosuch://bucket/x cannot be opened: .*nosuch"),
    ],
)
def test_urls_that_cannot_be_written_are_refused(photos, url, message):
    with pytest.raises(RefusedInput, match=message) as refused:
        build_photos(photos, url)
    assert "secret" not in str(refused.value)


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


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parts_meet_in_a_bucket(photos, tmp_path, expected):
    """Input and output through the command, in worker processes, with the client's own requests."""

    def run(*argv: str) -> str:
        command = [sys.executable, "-m", *argv]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with s3_server("photos", "shards") as variables:
        environment = {**os.environ, **variables}
        code = (
            "import fsspec, sys\n"
            "fsspec.filesystem('s3').put(sys.argv[1] + '/', 's3://photos/', recursive=True)\n"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(photos)], env=environment, check=True, timeout=300
        )
        arguments = ["data_pipeline.build", "--source", "image-folder", "--split", "train"]
        arguments += ["--input", "s3://photos", "--output", "s3://shards/photos"]
        arguments += ["--shard-images", "3", "--workers", "2"]
        run(*arguments, "--part", "2/2")
        run(*arguments, "--part", "1/2")
        assert "wrote 12 images" in run("data_pipeline.merge", "s3://shards/photos")
        assert "already holds" in run(*arguments)
        code = (
            "import fsspec, sys\n"
            "store = fsspec.filesystem('s3')\n"
            "store.get('s3://shards/photos/', sys.argv[1] + '/', recursive=True)\n"
        )
        copy = tmp_path / "copy"
        subprocess.run(
            [sys.executable, "-c", code, str(copy)], env=environment, check=True, timeout=300
        )
    found = files_of(copy)
    assert b"s3://photos/train/class2/notes.txt" in found.pop("skipped.jsonl")
    del expected["skipped.jsonl"]
    assert found == expected
    assert not any(b"test-secret" in data for data in found.values())
