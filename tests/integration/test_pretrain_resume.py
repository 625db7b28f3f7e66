"""Two real ranks: stopped, killed and resumed, they end with the undisturbed run's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

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

    # One rank is killed: the other ends by itself, with an error. (A save still being written
    # would be lost; here training waits for each.)
    waiting = options({**base, "run-dir": run, "checkpoint.in-background": False})
    ended = run_ranks(2, waiting, drive={"signal": "SIGKILL", "after_step": 10, "on_rank": 1})
    assert ended.codes[1] == -9 and ended.codes[0] not in (0, 85), ended.texts
    assert checkpoint_steps(run) == [6, 8]

    # The newest checkpoint is damaged: the one before serves, and the console says so.
    damaged = run / "checkpoints" / "step-00000008" / "state-00001.safetensors"
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

    # Started once more, it says that it is finished; other settings are refused by name.
    ended = run_ranks(2, again)
    assert ended.codes == [0, 0] and "is finished (step 12)" in ended.texts[0]
    longer = {**base, "run-dir": run, "schedule.total-steps": 14}
    ended = run_ranks(2, options({**longer, "optim.lr": 0.5}))
    assert ended.codes == [2, 2] and "optim.lr was 0.001, now 0.5" in ended.texts[0]
    assert ended.texts[1] == ""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"ranks": 2, "zero.stage": 1}, {"ranks": 1, "zero.stage": 2}, id="2to1"),
        pytest.param(
            {"ranks": 1, "zero.stage": 3},
            {"ranks": 2, "zero.stage": 1, "zero.offload-optimizer": True},
            id="1to2-offloaded-after",
        ),
        pytest.param(
            {"ranks": 2, "zero.stage": 2, "zero.offload-optimizer": True},
            {"ranks": 3, "zero.stage": 3},
            id="2to3-offloaded-before",
        ),
    ],
)
@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_another_stage(before, after, shards, tmp_path):
    before, after = dict(before), dict(after)
    base = {**shards, "run-dir": tmp_path / "run", "precision": "bf16"}
    base |= {"batch.global-images": 12, "batch.micro-images": 2, "data.val": None}
    base |= {"checkpoint.keep": 9, "optim.ema-decay": 0.9}
    ranks = before.pop("ranks")
    drive = {"signal": "SIGTERM", "after_step": 5, "on_rank": 0}
    ended = run_ranks(ranks, options({**base, **before}), drive=drive)
    assert ended.codes == [85] * ranks, ended.texts
    stopped_at = read_json(tmp_path / "run" / "status.json")["step"]

    new_ranks = after.pop("ranks")
    drive = {"resave": str(tmp_path / "again"), "record": str(tmp_path)}
    ended = run_ranks(new_ranks, options({**base, **after}), drive=drive)
    assert ended.codes == [0] * new_ranks, ended.texts
    assert f"saved by {ranks} ranks, going on with {new_ranks}" in ended.texts[0]

    name = f"step-{stopped_at:08d}"
    saved = whole_state(tmp_path / "run" / "checkpoints" / name)
    again = whole_state(tmp_path / "again" / name)
    assert saved.keys() == again.keys()
    kinds = {name.split("/")[0] for name in saved}
    assert kinds == {"master", "exp_avg", "exp_avg_sq", "average"}
    assert all(torch.equal(saved[key], again[key]) for key in saved)
    # Not an image is left out or seen twice: the positions go on where they were.
    positions = [position for position, _, _ in seen(tmp_path)]
    assert positions == list(range(stopped_at * 12, 12 * 12))
    result = read_json(tmp_path / "run" / "result.json")
    assert (result["steps"], result["resumed_from_steps"]) == (12, [stopped_at])


def whole_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, put together from the ranks' files without our reader."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for path in checkpoint.glob("state-*.safetensors"):
        with safe_open(path, "pt") as file:
            for name, start in json.loads(file.metadata()["starts"]).items():
                parts.setdefault(name, []).append((start, file.get_tensor(name)))
    return {
        name: torch.cat([part for _, part in sorted(pieces, key=lambda piece: piece[0])])
        for name, pieces in parts.items()
    }


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
    strict = {"health.max-skipped": 0, "health.max-rewinds": 0}
    arguments = options({**shards, **strict, "run-dir": run})
    ended = run_ranks(2, arguments, drive={"nan_at_step": 6, "on_rank": 1})
    assert ended.codes == [1, 1], ended.texts
    assert "step 6 (positions 96 to 111): the loss is not finite on rank 1" in ended.texts[0]
    assert "Traceback" not in ended.texts[0]
    status = read_json(run / "status.json")
    assert (status["state"], status["step"]) == ("failed", 7)
    assert checkpoint_steps(run) == [4]


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_the_run_and_is_named(shards, tmp_path):
    run = tmp_path / "run"
    # Long enough for a first step on a busy machine, which must not count as a stall.
    arguments = options({**shards, "data.val": None, "run-dir": run, "health.stall-seconds": 15})
    drive = {"signal": "SIGSTOP", "after_step": 7, "on_rank": 1}
    ended = run_ranks(2, arguments, drive=drive, first_ends_all=True)
    assert ended.codes == [75, -9], ended.texts
    assert "rank 1 said nothing: it is stopped or dead" in ended.texts[0]
    status = read_json(run / "status.json")
    assert status["state"] == "failed" and status["reason"].startswith("stalled: nothing happened")
    record = read_json(run / "stalls" / "rank-00000.json")
    assert (record["waits_for"], record["step"]) in {("collective", 7), ("collective", 8)}
    assert "train_step" in (run / "stalls" / "rank-00000.txt").read_text()
    # Started again, it goes on from its checkpoint and leaves no stall behind.
    ended = run_ranks(2, arguments)
    assert ended.codes == [0, 0], ended.texts
    assert read_json(run / "result.json")["resumed_from_steps"] == [4]
    assert not (run / "stalls" / "rank-00000.json").exists()


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
