"""Leaks between datasets at URLs, on a real web server and one that speaks S3; without secrets."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.errors import RefusedInput
from data_pipeline.dataset import open_dataset
from data_pipeline.exclusion import excluded_rows
from data_pipeline.leaks.__main__ import main
from data_pipeline.leaks.table import METADATA_FIELD
from data_pipeline.location import ShardAccess
from data_pipeline.manifest import MANIFEST_FILE, Manifest
from tests.data_pipeline.nginx_server import nginx_serving
from tests.data_pipeline.s3_server import s3_server
from tests.data_pipeline.sample_shards import encode, write_dataset

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with `train` and `test`, which share images 3 and 7, and a server that shows it."""
    root = tmp_path_factory.mktemp("served")
    noise = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    images = [encode(np.kron(pixels, np.ones((8, 8, 1), np.uint8))) for pixels in noise]
    write_dataset(root / "train", [images[:5], images[5:9]])
    write_dataset(root / "test", [[images[9], images[3]], [images[7], images[10]]])
    root.chmod(0o755)
    for parent in root.parents[:3]:
        parent.chmod(0o755)
    with nginx_serving(root, tmp_path_factory.mktemp("nginx")) as server:
        yield server


def arguments(train: str, test: str, folder: Path, *more: str) -> list[str]:
    fixed = ["--train", train, "--test", test, "--threads", "2", *more]
    return [*fixed, "--output", f"{folder}/leaks.parquet", "--report", f"{folder}/leaks.html"]


def rows_of(folder: Path) -> list[dict]:
    return pq.ParquetFile(folder / "leaks.parquet").read().to_pylist()


def pairs(folder: Path) -> list[tuple[int, int, str]]:
    return [(row["train_row"], row["test_row"], row["kind"]) for row in rows_of(folder)]


PAIRS = [(3, 1, "exact"), (7, 2, "exact")]


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_datasets_on_a_web_server(served, tmp_path, capsys, cached):
    more = ["--cache-dir", str(tmp_path / "cache")] if cached else []
    url = served.url
    assert main(arguments(f"{url}/train", f"{url}/test", tmp_path, *more)) == 0
    assert pairs(tmp_path) == PAIRS
    assert {row["test_folder"] for row in rows_of(tmp_path)} == {f"{url}/test"}
    assert f"{url}/test: 2 of 4 test images have a copy" in capsys.readouterr().out
    assert (tmp_path / "leaks.html").read_text().count("<img") == 4
    facts = json.loads(pq.read_schema(tmp_path / "leaks.parquet").metadata[METADATA_FIELD])
    assert [test["folder"] for test in facts["tests"]] == [f"{url}/test"]
    for place in (f"{url}/train", served.root / "train"):
        assert excluded_rows(open_dataset(place), tmp_path / "leaks.parquet").tolist() == [3, 7]


SECRET = "hunter2hunter2"


def with_signed_urls(folder: Path, url: str, output: Path) -> Path:
    """The same dataset, by a manifest that names its shards by signed URLs."""
    manifest = Manifest.load(folder)
    shards = [
        dataclasses.replace(shard, path=f"{url}/{shard.path}?signature={SECRET}")
        for shard in manifest.shards
    ]
    signed = Manifest.describe(
        identity=(manifest.name, manifest.split),
        classes=manifest.classes,
        shards=shards,
        source=manifest.source,
        index_digest=manifest.index_digest,
    )
    output.mkdir()
    (output / MANIFEST_FILE).write_text(signed.as_json())
    (output / "index.parquet").write_bytes((folder / "index.parquet").read_bytes())
    return output


def test_signed_urls_stay_out_of_table_page_and_messages(served, tmp_path, capsys):
    places = [
        with_signed_urls(served.root / name, f"{served.url}/{name}", tmp_path / name)
        for name in ("train", "test")
    ]
    assert main(arguments(*map(str, places), tmp_path, "--absolute-shards")) == 0
    assert pairs(tmp_path) == PAIRS
    shard = rows_of(tmp_path)[0]["train_shard"]
    assert shard == f"{served.url}/train/part-000000.tar?..."
    written = (tmp_path / "leaks.parquet").read_bytes() + (tmp_path / "leaks.html").read_bytes()
    said = capsys.readouterr()
    assert SECRET.encode() not in written and SECRET not in said.out + said.err
    train = open_dataset(places[0], ShardAccess(absolute_shards=True))
    assert excluded_rows(train, tmp_path / "leaks.parquet").tolist() == [3, 7]


@pytest.mark.slow
def test_datasets_in_a_bucket(served, tmp_path):
    with s3_server("data") as variables:
        environment = {**os.environ, **variables, "AWS_SECRET_ACCESS_KEY": SECRET}
        put = "import fsspec, sys; fsspec.filesystem('s3').put(*sys.argv[1:], recursive=True)"
        for name in ("train", "test"):
            command = [sys.executable, "-c", put, f"{served.root}/{name}/", f"s3://data/{name}/"]
            subprocess.run(command, env=environment, check=True, timeout=100)
        command = [sys.executable, "-m", "data_pipeline.leaks"]
        command += arguments("s3://data/train", "s3://data/test", tmp_path)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert pairs(tmp_path) == PAIRS
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert not any(SECRET.encode() in data for data in [*files, done.stderr.encode()])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"http://me:{SECRET}@host/train", "must hold no user, password or query"),
        (f"https://host/train?signature={SECRET}", "must hold no user, password or query"),
    ],
)
def test_urls_with_credentials_are_refused(tmp_path, url, message):
    with pytest.raises(RefusedInput, match=message) as refused:
        main(arguments(url, str(tmp_path), tmp_path))
    assert SECRET not in str(refused.value)
