"""What the model sees under mixup and RandAugment does not depend on ranks, threads or restarts."""

import json
from pathlib import Path

import pytest

from tests.integration.pretrain_processes import options, read_json, run_ranks, tiny_shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STEPS, GLOBAL_IMAGES = 4, 64  # partners are 64 / 32 apart


def seen(folder: Path) -> dict[int, str]:
    """Digest of the model's input at each position, of all ranks; no position twice."""
    lines = [line for path in folder.glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    found = dict(json.loads(line) for line in lines)
    assert len(found) == len(lines)
    return found


def test_one_rank_or_two_stopped_and_resumed_the_model_sees_the_same(tmp_path):
    base = {
        "data.train": tiny_shards(tmp_path / "train", (40, 37, 43), seed=0),
        "augment.level": "medium1",
        "batch.global-images": GLOBAL_IMAGES,
        "batch.micro-images": 16,
        "schedule.total-steps": STEPS,
    }
    folders = {name: tmp_path / name for name in ("alone", "together")}
    for folder in folders.values():
        folder.mkdir()

    alone = {**base, "run-dir": tmp_path / "run-alone", "loader.threads": 1}
    ended = run_ranks(1, options(alone), drive={"record_inputs": str(folders["alone"])})
    assert ended.codes == [0], ended.texts

    # Two ranks until they are stopped, then one, with other micro batches and more threads.
    record = {"record_inputs": str(folders["together"])}
    two = {**base, "run-dir": tmp_path / "run-together", "batch.micro-images": 4}
    stop = {"signal": "SIGTERM", "after_step": 2, "on_rank": 0}
    ended = run_ranks(2, options(two), drive={**record, **stop})
    assert ended.codes == [85, 85], ended.texts
    assert 2 <= read_json(tmp_path / "run-together" / "status.json")["step"] < STEPS
    one = {**two, "batch.micro-images": 32, "loader.threads": 3}
    ended = run_ranks(1, options(one), drive=record)
    assert ended.codes == [0], ended.texts

    expected = seen(folders["alone"])
    assert sorted(expected) == list(range(STEPS * GLOBAL_IMAGES))
    assert seen(folders["together"]) == expected
