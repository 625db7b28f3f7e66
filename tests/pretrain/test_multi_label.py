"""Pretraining on label sets: the masked loss, average precision, and what cannot be."""

import math

import pytest
import torch

from configs.errors import RefusedInput
from data_pipeline.augment import normalise
from models.zoo import build_model
from pretrain.session import open_training
from pretrain.step import train_step
from pretrain.validation import validate
from tests.data_pipeline.sample_label_sets import label_set_dataset
from training.losses import masked_sigmoid_cross_entropy
from training.mixup import mixup_share


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Options that name the same images for training and validation."""
    folder = label_set_dataset(tmp_path_factory.mktemp("sets")).folder
    return {"data.train": folder, "data.val": folder, "loss.kind": "sigmoid"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.kind": "softmax"}, r"loss.kind = softmax, but .* several classes each"),
        ({"loss.label-smoothing": 0.1}, r"loss.label_smoothing = 0.1 spreads one label"),
    ],
)
def test_what_label_sets_rule_out_is_refused(plan_of, sets, changes, message):
    with pytest.raises(RefusedInput, match=message):
        plan_of({**sets, **changes})


def test_training_and_validation_images_must_be_of_a_kind(plan_of, sets, shards):
    with pytest.raises(RefusedInput, match=r"has label sets, data\.val = .* one label an image"):
        plan_of({**sets, "data.val": shards["data.val"]})
    with pytest.raises(RefusedInput, match=r"has one label an image, data\.val = .* label sets"):
        plan_of({"data.val": sets["data.val"]})


def test_a_step_takes_the_masked_loss_and_validation_gives_average_precision(
    plan_of, one_rank, sets
):
    plan = plan_of({**sets, "model.dropout": 0.0, "batch.micro-images": 16})
    with open_training(plan) as training:
        model = build_model(training.architecture, seed=plan.config.seed)
        batch = next(training.loader)
        training.loader.skip_to(0)
        assert batch.labels.shape == (16, 4)
        expected = masked_sigmoid_cross_entropy(model(normalise(batch.images)), batch.labels)
        train_step(training)
        assert training.losses[0].item() == pytest.approx(expected.item(), rel=1e-4)
        validate(training)
        scores = dict(training.validation)
        training.step = plan.total_steps
    assert set(scores) == {
        "validation/mean_average_precision",
        "validation/loss",
        "validation/broken_images",
    }
    assert 0 < scores["validation/mean_average_precision"] < 1
    assert math.isfinite(scores["validation/loss"])
    assert torch.isfinite(torch.tensor(list(scores.values()))).all()


def test_mixup_mixes_the_losses_of_both_label_sets(plan_of, one_rank, sets):
    plan = plan_of({**sets, "model.dropout": 0.0, "batch.micro-images": 16, "augment.mixup": 0.5})
    with open_training(plan) as training:
        model = build_model(training.architecture, seed=plan.config.seed)
        batch = next(training.loader)
        training.loader.skip_to(0)
        share, images = mixup_share(0.5, 0, 0), normalise(batch.images)
        assert share < 1
        # A batch of 16: partners are half a micro batch apart.
        logits = model(share * images + (1 - share) * images.roll(8, dims=0))
        own = masked_sigmoid_cross_entropy(logits, batch.labels)
        other = masked_sigmoid_cross_entropy(logits, batch.labels.roll(8, dims=0))
        train_step(training)
        expected = (share * own + (1 - share) * other).item()
        assert training.losses[0].item() == pytest.approx(expected, rel=1e-4)
        training.step = plan.total_steps
