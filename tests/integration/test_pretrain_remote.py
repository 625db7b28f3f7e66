"""Pretraining on shards behind a web server: the same run, to the bit, as on a local folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data_pipeline.fault_proxy import Fault, fault_proxy
from tests.data_pipeline.nginx_server import Nginx, nginx_serving
from tests.integration.pretrain_processes import (
    SCRIPT,
    Ended,
    environment,
    options,
    read_json,
    run_ranks,
    tiny_shards,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DEEPSPEED = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2")
SHARD_IMAGES = (20, 12, 25, 17)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    tiny_shards(root / "train", SHARD_IMAGES, seed=0)
    tiny_shards(root / "val", (13, 10), seed=1)
    for folder in (root, *root.parents[:3]):
        folder.chmod(0o755)
    with nginx_serving(root, tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="module")
def local_run(nginx, tmp_path_factory) -> tuple[str, list[Any]]:
    """Weights, and what each step was trained on, of two ranks that read the local folder."""
    folder = tmp_path_factory.mktemp("local")
    ended = trained_on(nginx.root, nginx.root, folder)
    assert ended.codes == [0, 0], ended.texts
    return outcome(folder)


def trained_on(train: Path | str, val: Path | str, folder: Path, **changes: Any) -> Ended:
    """Two ranks; `changes` are options, with dots and dashes, and `drive` what happens to them."""
    drive = {"record": str(folder / "record"), **changes.pop("drive", {})}
    values = {"data.train": f"{train}/train", "data.val": f"{val}/val", "run-dir": folder / "run"}
    (folder / "record").mkdir(exist_ok=True)
    return run_ranks(2, options({**values, **changes}), drive=drive)


def outcome(folder: Path) -> tuple[str, list[Any]]:
    """SHA-256 of the exported weights; positions, rows and digests of the pixels, by position."""
    lines = [
        json.loads(line)
        for path in sorted((folder / "record").iterdir())
        for line in path.read_text().splitlines()
    ]
    card = read_json(folder / "run" / "export" / "model.json")
    return card["weights_sha256"], sorted(lines)


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["values"] for line in lines]


@pytest.mark.parametrize("cached", [False, True], ids=["straight", "cached"])
def test_a_run_on_a_url_is_the_local_run(nginx: Nginx, local_run, tmp_path, cached):
    cache = {"data.cache-dir": tmp_path / "cache"} if cached else {}
    already = nginx.num_requests(".tar")
    ended = trained_on(nginx.url, nginx.url, tmp_path, **cache)
    assert ended.codes == [0, 0], ended.texts
    assert outcome(tmp_path) == local_run
    told = [values for values in metrics(tmp_path) if "data/remote_bytes" in values]
    assert len(told) == 4, "each logging step tells"
    assert sum(values["data/remote_bytes"] for values in told) > 0
    assert all(values["data/remote_wait_seconds"] >= 0 for values in told)
    if cached:
        assert told[-1]["data/cache_hit_fraction"] == 1
        num_shards = len(SHARD_IMAGES) + 2
        assert nginx.num_requests(".tar") - already == num_shards, "one download a node"
        assert not list((tmp_path / "cache" / "incoming").glob("*.partial"))


def test_faults_change_nothing_but_the_time(nginx: Nginx, local_run, tmp_path):
    with fault_proxy(nginx.port) as proxy:
        proxy.plan("part-000001.tar", Fault("reset", after_bytes=1000), None)
        proxy.plan("part-000002.tar", Fault("corrupt", after_bytes=3000), None)
        busy = Fault("status", status=503, headers={"Retry-After": "1"})
        proxy.plan("part-000003.tar", busy, None)
        ended = trained_on(proxy.url, nginx.root, tmp_path, **{"data.cache-dir": tmp_path / "c"})
    assert ended.codes == [0, 0], ended.texts
    assert outcome(tmp_path) == local_run
    assert sum(values.get("data/remote_retries", 0) for values in metrics(tmp_path)) >= 3


def test_an_outage_that_lasts_ends_all_ranks_with_its_cause(nginx: Nginx, tmp_path):
    """Under the launcher people use: no rank is left behind, and one message names the URL."""
    with fault_proxy(nginx.port) as proxy:
        proxy.plan("part-000002.tar", Fault("status", status=503))
        values = {
            "data.train": f"{proxy.url}/train",
            "data.retry-seconds": 3,
            "data.cache-dir": tmp_path / "cache",
            "run-dir": tmp_path / "run",
        }
        ended = subprocess.run(
            [*DEEPSPEED, str(SCRIPT), *options(values)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
    assert ended.returncode != 0
    told = f"{proxy.url}/train/part-000002.tar cannot be read: gave up after"
    assert told in ended.stdout and "answered 503" in ended.stdout, ended.stdout
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"


def test_a_run_may_go_on_where_its_data_moved_to(nginx: Nginx, local_run, tmp_path):
    """Begun on the local folder and stopped, ended on the URL."""
    stop = {"signal": "SIGTERM", "after_step": 5, "on_rank": 1}
    assert trained_on(nginx.root, nginx.root, tmp_path, drive=stop).codes == [85, 85]
    ended = trained_on(nginx.url, nginx.url, tmp_path)
    assert ended.codes == [0, 0], ended.texts
    assert outcome(tmp_path) == local_run
