"""Archives and tables at URLs: read as from a folder, through faults, from any position."""

import os
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset
from data_pipeline.remote.transfer import Transfers
from data_pipeline.sources import open_source, remote_reading
from data_pipeline.sources.remote_files import SourceUnavailable
from tests.data_pipeline import archive_layouts as layouts
from tests.data_pipeline.fault_proxy import Fault, fault_proxy
from tests.data_pipeline.nginx_server import nginx_serving
from tests.data_pipeline.quick_transfers import short_pauses
from tests.data_pipeline.s3_server import s3_server
from tests.data_pipeline.sample_streams import FAST, files_of


@pytest.fixture
def memory():
    """Puts a folder at memory://in."""
    files = fsspec.filesystem("memory")

    def put(root):
        for path in root.rglob("*"):
            if path.is_file():
                files.pipe_file(f"/in/{path.relative_to(root)}", path.read_bytes())
        return "memory://in"

    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield put
    files.store.clear()


def contents(source, start=0):
    return [(image.label, image.read()) for image in source.stream(start)]


def synset_list(folder):
    path = folder / "list"
    path.write_text("n00000010\nn00000020\nn00000030\n")
    return path


LAYOUTS = {
    "imagenet-21k": lambda root: layouts.imagenet21k(root, gzipped=False),
    "imagenet-21k gzipped": lambda root: layouts.imagenet21k(root, gzipped=True),
    "open-images": lambda root: layouts.open_images(root, archived=True),
    "parquet": lambda root: layouts.parquet_file(root / "data/train-0.parquet", range(30)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_url_holds_the_same_stream_from_any_position(tmp_path, memory, kind):
    LAYOUTS[kind](tmp_path / "in")
    options = {"classes": synset_list(tmp_path)} if "21k" in kind else {}
    name = kind.partition(" ")[0]
    local = open_source(name, tmp_path / "in", "train", **options)
    remote = open_source(name, memory(tmp_path / "in"), "train", **options)
    assert remote.fingerprint() == local.fingerprint()
    assert (remote.classes, remote.options()) == (local.classes, local.options())
    images = contents(local)
    assert len(images) >= 3 and contents(remote) == images
    for start in (1, len(images) - 1, len(images)):
        assert contents(local, start) == contents(remote, start) == images[start:]
    assert remote.notices() == local.notices()


def test_a_row_group_before_the_position_is_not_read(tmp_path, memory, monkeypatch):
    files = [np.random.default_rng(number).bytes(20_000) for number in range(30)]
    (tmp_path / "in").mkdir()
    table = pa.table({"image": files, "label": [0] * 30})
    pq.write_table(table, tmp_path / "in/train-0.parquet", row_group_size=4)
    place = memory(tmp_path / "in")
    source = open_source("parquet", place, "train")
    monkeypatch.setattr(remote_reading, "_BUFFER_BYTES", 1)
    places = []
    real = Transfers.read_range

    def read_range(self, url, start, size, file_bytes):
        places.append(start)
        return real(self, url, start, size, file_bytes)

    monkeypatch.setattr(Transfers, "read_range", read_range)
    assert [file for _, file in contents(source, 22)] == files[22:]
    assert min(places) >= 400_000  # in front of that lie 20 images


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@host/x.tar", r"http://\*\*\*@host/x.tar: give a plain URL"),
        ("https://host/x.tar?signature=secret", r"https://host/x.tar\?\.\.\.: give a plain URL"),
        ("simplecache::s3://bucket/x.tar", "give a plain URL"),
        ("memory://in/x.tar", "is remote, so its synsets are not known"),
        ("memory://nothing", r"memory://nothing/\*_whole.tar\* is missing"),
    ],
)
def test_urls_that_cannot_be_read_are_refused(memory, url, message):
    fsspec.filesystem("memory").pipe_file("/in/x.tar", b"")
    with pytest.raises(RefusedInput, match=message) as refused:
        open_source("imagenet-21k", url, "train")
    assert "secret" not in str(refused.value)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    layouts.imagenet21k(root, gzipped=False, images=40)
    synset_list(root)
    root.chmod(0o755)
    for parent in root.parents[:3]:
        parent.chmod(0o755)
    with nginx_serving(root, tmp_path_factory.mktemp("nginx")) as server:
        yield server


ARCHIVE = "fall11_whole.tar"


def build(nginx, place, output):
    options = {**FAST, "shards": 4, "buffer_bytes": 20_000, "classes": nginx.root / "list"}
    return build_dataset("imagenet-21k", place, "train", output, **options)


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_a_web_servers_faults_do_not_show(nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_reading, "_BUFFER_BYTES", 50_000)
    short_pauses(monkeypatch)
    build(nginx, nginx.root / ARCHIVE, tmp_path / "expected")
    with fault_proxy(nginx.port) as proxy:
        busy = Fault("status", status=503, headers={"Retry-After": "0"})
        faults = (None, None, None, Fault("reset", after_bytes=1000), busy)
        proxy.plan(ARCHIVE, *faults, Fault("truncate", after_bytes=500), None)
        build(nginx, f"{proxy.url}/{ARCHIVE}", tmp_path / "out")
        assert len(proxy.gets(ARCHIVE)) > 5
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_an_outage_costs_only_the_last_images(nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_reading, "_BUFFER_BYTES", 50_000)
    short_pauses(monkeypatch)
    build(nginx, nginx.root / ARCHIVE, tmp_path / "expected")
    with fault_proxy(nginx.port) as proxy:
        proxy.plan(ARCHIVE, None, None, None, Fault("status", status=403))
        with pytest.raises(SourceUnavailable, match=rf"{ARCHIVE} cannot be read.*403") as lost:
            build(nginx, f"{proxy.url}/{ARCHIVE}", tmp_path / "out")
        assert "data." not in str(lost.value)
        proxy.plan(ARCHIVE, None)
        summary = build(nginx, f"{proxy.url}/{ARCHIVE}", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    assert 0 < summary.num_written < summary.manifest.num_images


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stream_goes_from_bucket_to_bucket_in_parts(nginx, tmp_path):
    """Through the commands and the client's own requests."""
    build(nginx, nginx.root / ARCHIVE, tmp_path / "expected")

    def run(*argv: str) -> str:
        command = [sys.executable, *argv]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    copy = "import fsspec, sys; getattr(fsspec.filesystem('s3'), sys.argv[1])(*sys.argv[2:])"
    with s3_server("archives", "shards") as variables:
        environment = {**os.environ, **variables}
        run("-c", copy, "put_file", str(nginx.root / ARCHIVE), f"s3://archives/{ARCHIVE}")
        arguments = ["-m", "data_pipeline.build", "--source", "imagenet-21k", "--split", "train"]
        arguments += ["--input", "s3://archives", "--output", "s3://shards/in21k"]
        arguments += ["--classes", str(nginx.root / "list"), "--shards", "4", "--check", "quick"]
        arguments += ["--buffer-bytes", "20000", "--scratch", str(tmp_path / "scratch")]
        for part in ("2/2", "1/2"):
            assert "passed over 1 synsets" in run(*arguments, "--part", part)
        assert "wrote 120 images" in run("-m", "data_pipeline.merge", "s3://shards/in21k")
        run("-c", copy, "get_file", "s3://shards/in21k/index.parquet", str(tmp_path / "index"))
        run("-c", copy, "get_file", "s3://shards/in21k/manifest.json", str(tmp_path / "manifest"))
    expected = files_of(tmp_path / "expected")
    assert (tmp_path / "index").read_bytes() == expected["index.parquet"]
    assert (tmp_path / "manifest").read_bytes() == expected["manifest.json"]  # with all digests
    assert list((tmp_path / "scratch").iterdir()) == []
