"""Mixup and RandAugment inside a pretraining run: the loss it takes, what a resume sees."""

import json

import pytest
import torch
import torch.nn.functional as F

import pretrain.step
from configs.errors import RefusedInput
from data_pipeline.augment import normalise
from models.zoo import build_model
from pretrain import loop, session
from pretrain.resume import check_same_run, run_identity
from pretrain.session import open_training
from pretrain.step import train_step
from training.losses import sigmoid_cross_entropy
from training.mixup import mixup_share
from training.preemption import EXIT_SAVED
from training.rand_augment import RandAugment

AUGMENTED = {"augment.level": "medium1", "model.dropout": 0.0}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_step_takes_the_loss_of_mixed_images_against_mixed_targets(kind, plan_of, one_rank):
    plan = plan_of(
        {**AUGMENTED, "loss.kind": kind, "loss.label-smoothing": 0.1, "batch.micro-images": 16}
    )
    with open_training(plan) as training:
        model = build_model(training.architecture, seed=plan.config.seed)
        batch = next(training.loader)
        training.loader.skip_to(0)
        images = normalise(RandAugment(2, 15.0, 0)(batch.images, batch.positions.numpy()))
        share = mixup_share(0.2, 0, 0)
        assert 0.5 < share < 1
        # A batch of 16: partners are half a micro batch apart.
        mixed = share * images + (1 - share) * images.roll(8, dims=0)
        logits = model(mixed)
        own, other = batch.labels, batch.labels.roll(8)
        if kind == "softmax":
            expected = share * F.cross_entropy(logits, own, label_smoothing=0.1)
            expected = expected + (1 - share) * F.cross_entropy(logits, other, label_smoothing=0.1)
        else:
            hard = share * F.one_hot(own, 4) + (1 - share) * F.one_hot(other, 4)
            expected = sigmoid_cross_entropy(logits, 0.9 * hard + 0.1 / 4)
        train_step(training)
        assert training.losses[0].item() == pytest.approx(expected.item(), rel=1e-4)
        training.step = plan.total_steps


def test_a_resumed_run_sees_the_images_of_the_undisturbed_one(
    plan_of, one_rank, monkeypatch, tmp_path
):
    seen: dict[int, torch.Tensor] = {}
    plain = pretrain.step._loss

    def recorded(training, images, labels):
        assert training.step not in seen
        seen[training.step] = training.augmentation.mixup(training.step)(normalise(images))
        return plain(training, images, labels)

    monkeypatch.setattr(pretrain.step, "_loss", recorded)
    changes = {**AUGMENTED, "data.val": None, "schedule.total-steps": 4, "batch.micro-images": 16}
    undisturbed = plan_of({**changes, "run-dir": tmp_path / "undisturbed"})
    assert loop.pretrain(undisturbed) == 0
    expected, seen = seen, {}
    one_rank()

    plan = plan_of(changes)
    with monkeypatch.context() as patch:
        for module in (loop, session):
            patch.setattr(module, "stop_requested", lambda: "test" if len(seen) == 2 else None)
        assert loop.pretrain(plan) == EXIT_SAVED
    one_rank()
    assert loop.pretrain(plan) == 0
    assert seen.keys() == expected.keys() == {0, 1, 2, 3}
    assert all(torch.equal(seen[step], expected[step]) for step in seen)
    results = [
        json.loads((run / "result.json").read_text())["weights_sha256"]
        for run in (plan.run_dir, undisturbed.run_dir)
    ]
    assert results[0] == results[1]


def test_another_level_is_another_run(plan_of, tmp_path):
    saved = {"identity": run_identity(plan_of(), "fp32"), "step": 4, "zero_stage": 1}
    with pytest.raises(RefusedInput, match=r"augment\.level was none, now light1"):
        check_same_run(saved, plan_of({"augment.level": "light1"}), tmp_path, "fp32")


def test_a_run_says_when_its_partners_are_its_own(plan_of):
    def told(**changes):
        plan = plan_of({name.replace("__", "."): value for name, value in changes.items()})
        return [notice for notice in plan.notices if "mixup" in notice]

    assert told() == []
    assert len(told(augment__mixup=0.2)) == 1
    assert told(augment__mixup=0.2, batch__global_images=64) == []


def test_mixup_of_single_images_is_refused(plan_of):
    with pytest.raises(RefusedInput, match="have 1 image each"):
        plan_of({"augment.level": "light2", "batch.micro-images": 1})
