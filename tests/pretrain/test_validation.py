"""Validation by a second labelling, in which several classes may count as right for an image."""

import json
from dataclasses import replace

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.index import open_dataset
from data_pipeline.real_labels import RealLabels
from pretrain.session import open_training
from pretrain.step import train_step
from pretrain.validation import validate


@pytest.fixture
def real(shards, tmp_path):
    """Own class of the first six validation images, none for the others."""
    labels = open_dataset(shards["data.val"]).label.tolist()
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[label] for label in labels[:6]] + [[]] * (len(labels) - 6)))
    return path


def test_validation_counts_any_class_that_is_right(plan_of, one_rank, real):
    plan = plan_of({"data.val-real-labels": real})
    with open_training(plan) as training:
        train_step(training)
        scores = {}
        for name, accepted in {
            "own": training.plan.real_labels.accepted,
            "any": np.tile(np.arange(4, dtype=np.int32), (10, 1)),
            "all but own": (plan.validation.label[:, None] + np.arange(1, 4)) % 4,
        }.items():
            training.plan = replace(plan, real_labels=RealLabels(accepted))
            validate(training)
            scores[name] = dict(training.validation)
        training.step = plan.total_steps
    assert scores["any"]["validation/real_top1"] == 1.0
    top1 = scores["any"]["validation/top1"]
    assert scores["all but own"]["validation/real_top1"] == pytest.approx(1 - top1)
    assert scores["own"]["validation/real_top1"] in [hits / 6 for hits in range(7)]


def test_a_second_labelling_needs_validation_images(plan_of, real):
    with pytest.raises(RefusedInput, match=r"labels validation images, but data\.val is not set"):
        plan_of({"data.val-real-labels": real, "data.val": None})


def test_a_resumed_run_may_be_given_another_labelling(plan_of, real):
    from pretrain.resume import run_identity

    assert run_identity(plan_of({"data.val-real-labels": real})) == run_identity(plan_of())
