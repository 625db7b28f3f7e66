"""Broken images and lost shards in real runs: the same on any number of ranks, and resumed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.dataset import open_dataset
from tests.data_pipeline.sample_shards import blank_image
from tests.integration.pretrain_processes import (
    SCRIPT,
    environment,
    options,
    read_json,
    run_ranks,
    tiny_shards,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 270  # with a launcher, on a busy machine; seconds on a quiet one
TOLERANT = {"data.max-broken-fraction": 0.5}


@pytest.fixture
def shards(tmp_path) -> Path:
    """120 images; shard 1 (rows 40 to 76) is missing, and row 80 does not decode."""
    folder = tiny_shards(tmp_path / "train", (40, 37, 43), seed=0)
    dataset = open_dataset(folder)
    with open(dataset.shard_path(2), "r+b") as file:
        file.seek(int(dataset.offset[80]) + 40)
        file.write(bytes(int(dataset.size[80]) - 40))
    dataset.shard_path(1).rename(tmp_path / "put-away.tar")
    return folder


def quarantine(run: Path) -> list[dict[str, Any]]:
    lines = (run / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_budget_substitutes_and_quarantine_outlive_a_stop_and_other_ranks(shards, tmp_path):
    base = {"data.train": shards, "model.dropout": 0.0, **TOLERANT}

    def run(name: str, ranks: int, **drive: Any) -> list[int]:
        accumulation = {"batch.accumulation-steps": None, "batch.micro-images": 4}
        given = options({**base, **accumulation, "run-dir": tmp_path / name})
        record = tmp_path / f"{name}-record"
        record.mkdir(exist_ok=True)
        ended = run_ranks(ranks, given, drive={"record": str(record), **drive})
        assert set(ended.codes) <= {0, 85}, ended.texts
        return ended.codes

    assert run("two", 2) == [0, 0]
    assert run("one", 1) == [0]
    assert run("stopped", 2, signal="SIGTERM", after_step=5, on_rank=1) == [85, 85]
    assert 0 < len(quarantine(tmp_path / "stopped")) <= 38
    # What was listed after the checkpoint (by a run that then died) is met again, not listed twice.
    with (tmp_path / "stopped" / "quarantine.jsonl").open("a") as file:
        file.write(json.dumps({"row": 80, "shard": "s", "key": "k", "reason": "twice"}) + "\n")
    assert run("stopped", 2) == [0, 0]

    expected = quarantine(tmp_path / "two")
    assert sorted(line["row"] for line in expected) == [*range(40, 77), 80]
    assert {line["reason"] for line in expected if line["row"] < 77} == {"the file is missing"}
    for name in ("one", "stopped"):
        assert quarantine(tmp_path / name) == expected
        assert trained_on(tmp_path / f"{name}-record") == trained_on(tmp_path / "two-record")
    weights = [read_json(tmp_path / name / "result.json") for name in ("two", "stopped")]
    assert weights[0]["weights_sha256"] == weights[1]["weights_sha256"]


def trained_on(folder: Path) -> dict[int, tuple[int, str]]:
    """Row and digest of the pixels that each position showed, on whichever rank."""
    shown: dict[int, tuple[int, str]] = {}
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            position, row, digest = json.loads(line)
            assert shown.setdefault(position, (row, digest)) == (row, digest)
    return shown


def test_a_lost_shard_past_the_budget_ends_all_ranks_with_one_message(shards, tmp_path):
    """Whichever rank meets it: all leave at the same step, rank 0 says why, nothing is saved."""
    given = {"data.train": shards, "run-dir": tmp_path / "run", "data.max-broken-fraction": 0.1}
    ended = run_ranks(2, options(given))
    assert ended.codes == [2, 2], ended.texts
    errors = [line for t in ended.texts for line in t.splitlines() if "cannot be read" in line]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert "of 120 images cannot be read, more than the 12 that" in errors[0]
    assert "37 of shard part-000001.tar (the file is missing)" in errors[0]
    assert "quarantine.jsonl" in errors[0]
    assert "cannot be read" in (tmp_path / "run" / "train.log").read_text()
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert {line["row"] for line in quarantine(tmp_path / "run")} >= set(range(40, 77))

    # The shard is put back: the same command goes on, and the shard is used.
    (tmp_path / "put-away.tar").rename(shards / "part-000001.tar")
    ended = run_ranks(2, options(given))
    assert ended.codes == [0, 0], ended.texts
    assert [line["row"] for line in quarantine(tmp_path / "run")] == [80]


def deepspeed(changes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus 2 launch/pretrain.py ...` with the tiny run's options."""
    launcher = Path(sys.executable).with_name("deepspeed")
    return subprocess.run(
        [launcher, "--num_gpus", "2", SCRIPT, *options(changes)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_under_deepspeed_a_truncated_shard_is_borne_within_the_budget(tmp_path):
    train = tiny_shards(tmp_path / "train", (40, 20, 40), seed=0)
    val = tiny_shards(tmp_path / "val", (10, 11), seed=1)
    path = open_dataset(train).shard_path(1)
    os.truncate(path, path.stat().st_size - 4096)
    for row in (3, 12):  # one of them is scored by each rank
        blank_image(open_dataset(val), row)
    run, again, refused = (tmp_path / name for name in ("run", "again", "refused"))
    base = {"data.train": train, "data.val": val, **TOLERANT}
    ended = deepspeed({**base, "run-dir": run})
    assert ended.returncode == 0, ended.stdout
    result = read_json(run / "result.json")
    assert (result["steps"], result["broken_images"]) == (12, 20)
    assert result["metrics"]["validation/broken_images"] == 2
    assert {line["row"] for line in quarantine(run)} == set(range(40, 60))

    # The checkpoint of step 8 is all that is left: going on from it counts the same.
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-00000012")
    for name in ("status.json", "result.json", "export"):
        target = again / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    ended = deepspeed({**base, "run-dir": again})
    assert ended.returncode == 0, ended.stdout
    resumed = read_json(again / "result.json")
    assert resumed["resumed_from_steps"] == [8]
    same = ("broken_images", "metrics", "weights_sha256")
    assert [resumed[name] for name in same] == [result[name] for name in same]
    assert quarantine(again) == quarantine(run)

    ended = deepspeed({**base, "run-dir": refused, "data.max-broken-fraction": 0.15})
    assert ended.returncode == 2, ended.stdout
    told = [line for line in ended.stdout.splitlines() if "cannot be read" in line]
    assert len(told) == 1 and told[0].startswith("error: 20 of 100 images cannot be read, more")
    assert "20 of shard part-000001.tar (it has" in told[0]
    assert read_json(refused / "status.json")["state"] == "failed"


def test_broken_validation_images_past_the_budget_end_all_ranks(tmp_path):
    train = tiny_shards(tmp_path / "train", (40,), seed=0)
    val = tiny_shards(tmp_path / "val", (10, 11), seed=1)
    (val / "part-000001.tar").unlink()  # most of it is scored by rank 1 alone
    given = {"data.train": train, "data.val": val, "run-dir": tmp_path / "run"}
    ended = run_ranks(2, options(given))
    assert ended.codes == [2, 2], ended.texts
    assert "11 of 21 images cannot be read" in ended.texts[0]
    assert "part-000001.tar (the file is missing)" in ended.texts[0]
