"""Runs whose numbers go wrong: updates left out, going back, going around, giving up."""

import json

import pytest
import torch

import pretrain.step
from configs.health import HealthConfig
from models.weights import load_weights
from pretrain import loop
from pretrain.failures import TrainingStopped
from pretrain.health import Health, Trouble

BASE = {"data.val": None, "checkpoint.every-steps": 2, "logging.every-steps": 1}


def spoil_positions(monkeypatch, bad: range, factor: float = float("nan")) -> list[int]:
    """The loss of batches that start in `bad` is multiplied; gives the steps at which it was."""
    plain, steps = pretrain.step._loss, []

    def spoiled(training, images, labels):
        loss = plain(training, images, labels)
        if training.position not in bad:
            return loss
        steps.append(training.step)
        return loss * factor

    monkeypatch.setattr(pretrain.step, "_loss", spoiled)
    return steps


def result_of(plan) -> dict:
    return json.loads((plan.run_dir / "result.json").read_text())


def test_single_updates_are_left_out_and_counted(plan_of, one_rank, monkeypatch):
    spoil_positions(monkeypatch, range(64, 96))  # two steps' images
    plan = plan_of({**BASE, "schedule.total-steps": 8})
    assert loop.pretrain(plan) == 0
    result = result_of(plan)
    assert (result["skipped_updates"], result["rewinds"], result["images_seen"]) == (2, 0, 128)
    rows = [json.loads(line) for line in (plan.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"] for row in rows if "train/loss" in row["values"]}
    assert losses == {1, 2, 3, 4, 7, 8}  # there is no loss to speak of at 5 and 6


@pytest.mark.parametrize("stage", [1, 3])
def test_too_many_in_a_row_send_the_run_back_and_around_them(
    stage, plan_of, one_rank, monkeypatch, tmp_path, caplog
):
    settings = {**BASE, "schedule.total-steps": 10, "model.dropout": 0.0, "zero.stage": stage}
    spoiled = spoil_positions(monkeypatch, range(80, 112))  # steps 5 and 6 of the first attempt
    plan = plan_of({**settings, "health.max-skipped": 1})
    assert loop.pretrain(plan) == 0
    assert "Going back from step 7 to" in caplog.text and "step-00000004" in caplog.text
    assert "positions 80 to 111 will be passed over (1 of 3 times)" in caplog.text
    result = result_of(plan)
    assert sorted(set(spoiled)) == [5, 6]  # never again
    assert (result["steps"], result["rewinds"], result["images_seen"]) == (10, 1, 192)
    assert not list((plan.run_dir / "checkpoints").glob("set-aside-*"))

    # The weights are those of a run that never saw these images.
    one_rank()
    around = plan_of({**settings, "run-dir": tmp_path / "around"})
    trouble = Trouble(step=0, start=80, stop=112, reason="known beforehand")
    make = Health.__post_init__

    def forewarned(health):
        make(health)
        health.rewinds.append(trouble)

    monkeypatch.setattr(Health, "__post_init__", forewarned)
    assert loop.pretrain(around) == 0
    assert result_of(around)["weights_sha256"] == result["weights_sha256"]


def test_a_resumed_run_goes_around_them_too(plan_of, one_rank, monkeypatch):
    spoiled = spoil_positions(monkeypatch, range(80, 96))
    settings = {**BASE, "health.max-skipped": 0, "schedule.kind": "constant"}
    assert loop.pretrain(plan_of({**settings, "schedule.total-steps": 5})) == 0
    one_rank()
    # Step 5 is the bad one: the run goes back to 4, around it, and is resumed from there.
    longer = plan_of({**settings, "schedule.total-steps": 9})
    assert loop.pretrain(longer) == 0
    assert result_of(longer)["rewinds"] == 1 and len(set(spoiled)) == 1


def test_a_jump_of_the_loss_sends_the_run_back(plan_of, one_rank, monkeypatch, caplog):
    spoil_positions(monkeypatch, range(208, 224), factor=1000.0)  # step 13
    options = {"health.spike-score": 20, "health.spike-window": 10, "schedule.total-steps": 16}
    plan = plan_of({**BASE, **options})
    assert loop.pretrain(plan) == 0
    assert "the mean loss of positions 208 to 223 is" in caplog.text
    assert result_of(plan)["rewinds"] == 1
    weights = load_weights(plan.run_dir).state_dict
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_it_gives_up_with_a_report_of_all_troubles(plan_of, one_rank, monkeypatch):
    spoil_positions(monkeypatch, range(64, 10_000))
    plan = plan_of({**BASE, "health.max-skipped": 0, "health.max-rewinds": 2})
    with pytest.raises(TrainingStopped) as stopped:
        loop.pretrain(plan)
    message = str(stopped.value)
    assert "has gone back 2 times" in message and "health.max_rewinds = 2" in message
    assert "positions 96 to 111" in message and "positions 64 to 79" in message
    status = json.loads((plan.run_dir / "status.json").read_text())
    assert status["state"] == "failed"


def test_without_a_checkpoint_from_before_there_is_no_way_back(plan_of, one_rank, monkeypatch):
    spoil_positions(monkeypatch, range(0, 16))
    with pytest.raises(TrainingStopped, match="no checkpoint of step 0 or before"):
        loop.pretrain(plan_of({**BASE, "health.max-skipped": 0}))


def test_what_a_checkpoint_keeps_comes_back_and_later_troubles_stay():
    health = Health(HealthConfig())
    saved = {"skipped": 3, "rewinds": [{"step": 4, "start": 64, "stop": 80, "reason": "old"}]}
    newer = Trouble(9, 200, 216, "new")
    health.rewinds = [newer]
    health.take_over(json.loads(json.dumps(saved)))
    assert [t.reason for t in health.rewinds] == ["old", "new"] and health.skipped == 3
    assert health.passing_over(64) == 80 and health.passing_over(210) == 216
    assert health.passing_over(80) == 80
    health.rewinds.append(Trouble(4, 80, 96, "right behind the old one"))
    assert health.passing_over(70) == 96
