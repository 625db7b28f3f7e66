"""Datasets in a real S3-speaking server (moto) on loopback, through s3fs, with injected faults."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from data_pipeline.broken import BrokenShard
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.remote.faults import ShardUnavailable
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.bucket_reading import (
    PASSING_FAULTS,
    SHARD_1,
    access,
    check_outliving,
    check_reading,
)
from tests.data_pipeline.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.data_pipeline.s3_server import s3_server
from tests.data_pipeline.sample_shards import plain_dataset

pytest.importorskip("s3fs")
pytest.importorskip("moto")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]

# What clients of the server set in their environment, and the dataset that was uploaded.
Bucket = tuple[dict[str, str], ShardedDataset]
SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def bucket(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bucket]:
    local = plain_dataset(tmp_path_factory.mktemp("shards"), [2] * 3)
    with s3_server("shards") as environment:
        for path in local.folder.iterdir():
            upload(environment, path.name, path.read_bytes())
        yield environment, local


def upload(environment: dict[str, str], name: str, data: bytes) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    client.put_object(Bucket="shards", Key=f"in21k/{name}", Body=data)


@pytest.fixture
def proxy(bucket, monkeypatch) -> Iterator[FaultProxy]:
    environment = bucket[0]
    with fault_proxy(int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])) as server:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield server


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_a_dataset_in_a_bucket_is_the_local_one(bucket, proxy, tmp_path, cached):
    check_reading("s3://shards/in21k", bucket[1], proxy, tmp_path if cached else None)


@pytest.mark.parametrize("kind", PASSING_FAULTS)
def test_faults_that_pass_are_outlived(proxy, tmp_path, kind):
    check_outliving("s3://shards/in21k", kind, proxy, tmp_path)


LASTING = {
    "404": (Fault("status", status=404), "3 attempts", "FileNotFound|404|Not Found"),
    "403": (Fault("status", status=403), "3 attempts", "Permission|Forbidden|403"),
    "503": (Fault("status", status=503), r"\d+ attempts", "503|[Ss]low ?[Dd]own|Service"),
    "503 for an hour": (
        Fault("status", status=503, headers={"Retry-After": "3600"}),
        "1 attempts",
        "come back in 3600 s",
    ),
}


@pytest.mark.parametrize("kind", LASTING)
def test_faults_that_last_end_in_a_clear_error_without_secrets(proxy, kind):
    fault, attempts, cause = LASTING[kind]
    dataset = open_dataset("s3://shards/in21k", access())
    dataset.origin = replace(
        dataset.origin, access=access(retry_seconds=5.0 if kind == "503" else 200.0)
    )
    proxy.plan(SHARD_1, fault)
    with pytest.raises((ShardUnavailable, BrokenShard)) as refused:
        ShardReader(dataset).read(2)
    message = str(refused.value)
    assert f"s3://shards/in21k/{SHARD_1}" in message
    assert re.search(f"after {attempts} .*last cause: .*({cause})", message), message
    assert SECRET not in message
    assert isinstance(refused.value, BrokenShard) == (kind == "404")


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_an_object_that_is_shorter_than_the_manifest_says(bucket, proxy, tmp_path, cached):
    environment, local = bucket
    shard = local.shard_path(2)
    dataset = open_dataset("s3://shards/in21k", access(tmp_path if cached else None))
    cut = int(local.offset[5]) + 10
    upload(environment, shard.name, shard.read_bytes()[:cut])
    try:
        with pytest.raises(BrokenShard, match=rf"it has only {cut} bytes|answered 416"):
            ShardReader(dataset).read(5)
    finally:
        upload(environment, shard.name, shard.read_bytes())


def test_a_missing_client_is_named(monkeypatch):
    """What a checkout without `vitrain[s3]` says."""
    from fsspec.registry import known_implementations

    entry = {"class": "no_such_package.S3", "err": "Install no_such_package to access S3"}
    monkeypatch.setitem(known_implementations, "nos3", entry)
    with pytest.raises(ShardUnavailable, match="Install no_such_package to access S3"):
        open_dataset("nos3://shards/in21k", access(retry_seconds=5.0))


def test_credentials_reach_neither_cache_nor_statistics(proxy, tmp_path):
    reader = ShardReader(open_dataset("s3://shards/in21k", access(tmp_path)))
    reader.read(2)
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts and not any(SECRET.encode() in text for text in texts)
    assert SECRET not in str(reader.remote.statistics.read())
    reader.close()
