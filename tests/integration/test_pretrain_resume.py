"""Two real ranks: stopped, killed and resumed, they end with the undisturbed run's weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pretrain_processes import (
    options,
    read_json,
    run_ranks,
    tiny_shards,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RUNS = [
    pytest.param({"zero.stage": 1, "precision": "fp32"}, id="zero1-fp32"),
    pytest.param({"zero.stage": 3, "precision": "bf16"}, id="zero3-bf16"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shards")
    return {
        "data.train": tiny_shards(folder / "train", (40, 37, 43), seed=0),
        "data.val": tiny_shards(folder / "val", (21,), seed=1),
    }


@pytest.mark.parametrize("settings", RUNS)
def test_stopped_killed_and_resumed_runs_end_with_the_same_weights(settings, shards, tmp_path):
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    base = {**settings, **shards}

    ended = run_ranks(2, options({**base, "run-dir": undisturbed}))
    assert ended.codes == [0, 0], ended.texts
    expected = read_json(undisturbed / "result.json")
    assert expected["resumed_from_steps"] == []

    # One rank is told to stop: both save, at the same step, and leave with 85.
    again = options({**base, "run-dir": run})
    ended = run_ranks(2, again, drive={"signal": "SIGTERM", "after_step": 5, "on_rank": 1})
    assert ended.codes == [85, 85], ended.texts
    assert read_json(run / "status.json")["state"] == "saved"
    assert checkpoint_steps(run) == [4, 6]

    # One rank is killed: the other ends by itself, with an error.
    ended = run_ranks(2, again, drive={"signal": "SIGKILL", "after_step": 10, "on_rank": 1})
    assert ended.codes[1] == -9 and ended.codes[0] not in (0, 85), ended.texts
    assert checkpoint_steps(run) == [6, 8]

    # The newest checkpoint is damaged: the one before serves, and the console says so.
    damaged = sorted((run / "checkpoints" / "step-00000008" / "deepspeed").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    ended = run_ranks(2, again)
    assert ended.codes == [0, 0], ended.texts
    assert "passing over checkpoint" in ended.texts[0] and damaged.name in ended.texts[0]
    assert ended.texts[1] == ""  # only rank 0 speaks

    result = read_json(run / "result.json")
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert result["resumed_from_steps"] == [6, 6]
    assert train_metrics(run) == train_metrics(undisturbed)

    # Started once more, it says that it is finished; other settings or ranks are refused by name.
    ended = run_ranks(2, again)
    assert ended.codes == [0, 0] and "is finished (step 12)" in ended.texts[0]
    longer = {**base, "run-dir": run, "schedule.total-steps": 14}
    ended = run_ranks(2, options({**longer, "optim.lr": 0.5}))
    assert ended.codes == [2, 2] and "optim.lr was 0.001, now 0.5" in ended.texts[0]
    assert ended.texts[1] == ""
    ended = run_ranks(1, options({**longer, "batch.accumulation-steps": None}))
    assert ended.codes == [2] and "saved by 2 ranks" in ended.texts[0]


def test_every_global_batch_holds_the_same_images_at_one_and_two_ranks(shards, tmp_path):
    for world_size, started_by in ((1, "alone"), (2, "srun")):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        arguments = options({**shards, "data.val": None, "run-dir": folder / "run"})
        ended = run_ranks(
            world_size, arguments, drive={"record": str(folder)}, started_by=started_by
        )
        assert ended.codes == [0] * world_size, ended.texts

    assert seen(tmp_path / "1") == seen(tmp_path / "2")
    positions = [position for position, _, _ in seen(tmp_path / "1")]
    assert positions[: 12 * 16] == list(range(12 * 16))


def test_a_loss_that_is_no_number_on_one_rank_stops_both_and_changes_nothing(shards, tmp_path):
    run = tmp_path / "run"
    arguments = options({**shards, "run-dir": run})
    ended = run_ranks(2, arguments, drive={"nan_at_step": 6, "on_rank": 1})
    assert ended.codes == [1, 1], ended.texts
    assert "step 6 (positions 96 to 111): the loss is not finite on rank 1" in ended.texts[0]
    assert "Traceback" not in ended.texts[0]
    status = read_json(run / "status.json")
    assert (status["state"], status["step"]) == ("failed", 6)
    assert checkpoint_steps(run) == [4]


def checkpoint_steps(run: Path) -> list[int]:
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [int(folder.name.removeprefix("step-")) for folder in folders]


def train_metrics(run: Path) -> dict[tuple[int, str], Any]:
    """Values that must not depend on interruptions, by (step, name)."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row["values"].items()
        if name.startswith(("train/", "validation/"))
    }


def seen(folder: Path) -> list[tuple[int, int, str]]:
    """(position, row, digest of the pixels) of all ranks, in the order of positions."""
    lines = [line for path in folder.glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(tuple(json.loads(line)) for line in lines)
