"""Datasets in a server that speaks Google's API, read and built through gcsfs, with faults."""

import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from google.oauth2.credentials import Credentials
from webdataset import TarWriter

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenShard
from data_pipeline.build import build_dataset
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.foreign_index import IndexOptions, index_shards
from data_pipeline.remote.faults import ShardUnavailable
from data_pipeline.shard_reader import ShardReader
from data_pipeline.sources.remote_files import source_transfers
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline.bucket_reading import (
    PASSING_FAULTS,
    SHARD_1,
    access,
    check_outliving,
    check_reading,
)
from tests.data_pipeline.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.data_pipeline.gs_server import gs_server, settings
from tests.data_pipeline.sample_shards import plain_dataset, plain_image

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]

SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with gs_server("shards", "photos", "built") as port:
        yield port


@pytest.fixture(scope="module")
def local(server: int, tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    dataset = plain_dataset(tmp_path_factory.mktemp("shards"), [2] * 3)
    for path in dataset.folder.iterdir():
        upload(server, f"shards/in21k/{path.name}", path.read_bytes())
    return dataset


def upload(port: int, name: str, data: bytes) -> None:
    fsspec.filesystem("gs", **settings(port), skip_instance_cache=True).pipe_file(name, data)


@pytest.fixture
def proxy(server, local, monkeypatch) -> Iterator[FaultProxy]:
    with fault_proxy(server) as proxy:
        token = Credentials(token=SECRET)
        monkeypatch.setitem(fsspec.config.conf, "gs", settings(proxy.port) | {"token": token})
        yield proxy
    source_transfers.cache_clear()  # they have been connected to this proxy


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_a_dataset_in_a_bucket_is_the_local_one(local, proxy, tmp_path, cached):
    check_reading("gs://shards/in21k", local, proxy, tmp_path if cached else None)


@pytest.mark.parametrize("kind", PASSING_FAULTS)
def test_faults_that_pass_are_outlived(proxy, tmp_path, kind):
    check_outliving("gs://shards/in21k", kind, proxy, tmp_path)


LASTING = {
    "404": (Fault("status", status=404), 60.0, "3 attempts", "FileNotFound"),
    "403": (Fault("status", status=403), 60.0, "3 attempts", "answered 403"),
    "503": (Fault("status", status=503), 3.0, r"\d+ attempts", "answered 503"),
    "503 for an hour": (
        Fault("status", status=503, headers={"Retry-After": "3600"}),
        60.0,
        "1 attempts",
        "answered 503 .*come back in 3600 s",
    ),
    "reset": (Fault("reset", after_bytes=10), 3.0, r"\d+ attempts", "Connection|Payload"),
}


@pytest.mark.parametrize("kind", LASTING)
def test_faults_that_last_end_in_a_clear_error_without_secrets(proxy, kind):
    fault, seconds, attempts, cause = LASTING[kind]
    dataset = open_dataset("gs://shards/in21k", access(retry_seconds=seconds))
    proxy.plan(SHARD_1, fault)
    with pytest.raises((ShardUnavailable, BrokenShard)) as refused:
        ShardReader(dataset).read(2)
    message = str(refused.value)
    assert f"gs://shards/in21k/{SHARD_1}" in message
    assert re.search(f"after {attempts} .*last cause: .*({cause})", message), message
    assert SECRET not in message
    assert isinstance(refused.value, BrokenShard) == (kind == "404")


def test_a_missing_bucket_or_dataset_is_named(proxy):
    for url in ("gs://nothing/in21k", "gs://shards/nothing"):
        with pytest.raises(ShardUnavailable, match=rf"{url}/manifest\.json cannot be read.* 3 att"):
            open_dataset(url, access())


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_an_object_that_is_shorter_than_the_manifest_says(server, local, proxy, tmp_path, cached):
    shard = local.shard_path(2)
    dataset = open_dataset("gs://shards/in21k", access(tmp_path if cached else None))
    cut = int(local.offset[5]) + 10
    upload(server, f"shards/in21k/{shard.name}", shard.read_bytes()[:cut])
    try:
        with pytest.raises(BrokenShard, match=rf"it has only {cut} bytes|answered 416"):
            ShardReader(dataset).read(5)
    finally:
        upload(server, f"shards/in21k/{shard.name}", shard.read_bytes())


def test_foreign_shards_are_indexed_at_their_urls_and_read_from_there(server, proxy, tmp_path):
    for number in range(2):
        with TarWriter(str(tmp_path / "theirs.tar")) as tar:
            for at in range(2 * number, 2 * number + 2):
                tar.write({"__key__": f"{at:03d}", "png": plain_image(at), "cls": at % 2})
        data = (tmp_path / "theirs.tar").read_bytes()
        upload(server, f"shards/theirs/part-{number}.tar", data)
    proxy.plan("part-0.tar", Fault("status", status=503, headers={"Retry-After": "0"}), None)
    options = IndexOptions("theirs", "train", workers=1)
    index_shards("gs://shards/theirs/part-*.tar", tmp_path / "indexed", options)
    theirs = open_dataset(tmp_path / "indexed", access(absolute_shards=True))
    reader = ShardReader(theirs)
    assert [reader.read(row) for row in range(4)] == [plain_image(row) for row in range(4)]
    assert theirs.label.tolist() == [0, 1, 0, 1]
    reader.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.image_folder(tmp_path_factory.mktemp("local") / "photos")


def build(source: Path | str, output: Path | str):
    return build_dataset("image-folder", source, "train", output, shard_images=3, workers=1)


def content(port: int, folder: str) -> dict[str, bytes]:
    files = fsspec.filesystem("gs", **settings(port), skip_instance_cache=True)
    return {Path(path).name: files.cat_file(path) for path in files.find(folder)}


def test_a_build_from_and_to_buckets_is_the_local_one(server, proxy, photos, tmp_path):
    """A read and an upload are answered with 503 first."""
    for path in photos.rglob("*"):
        if path.is_file():
            upload(server, f"photos/{path.relative_to(photos)}", path.read_bytes())
    build(photos, tmp_path)
    first = "train%2Fclass0%2F0.jpg"
    proxy.plan(first, Fault("status", status=503, headers={"Retry-After": "0"}), None)
    proxy.plan("/upload/storage/v1/b/built/o", Fault("status", status=503), None)
    summary = build("gs://photos", "gs://built/photos")
    assert "to gs://built/photos in" in summary.text()
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert content(server, "built/photos") == expected
    assert len(proxy.gets(first)) == 2
    assert build("gs://photos", "gs://built/photos").already_built
    dataset = open_dataset("gs://built/photos", access())
    assert dataset.digest == open_dataset(tmp_path).digest


def test_a_build_that_may_not_write_says_so_and_is_gone_on_with(server, proxy, photos, tmp_path):
    proxy.plan("/upload/storage/v1/b/built/o", None, None, None, Fault("status", status=403))
    with pytest.raises(RefusedInput, match=r"gs://built/other cannot be written: .*Forbidden"):
        build(photos, "gs://built/other")
    assert "manifest.json" not in content(server, "built/other")
    proxy.plan("/upload/storage/v1/b/built/o", None)
    build(photos, "gs://built/other")
    build(photos, tmp_path)
    assert content(server, "built/other") == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }
