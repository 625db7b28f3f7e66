"""Validation images that cannot be read: left out of every score, counted, listed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.dataset import open_dataset
from pretrain.session import open_training
from pretrain.validation import validate
from tests.data_pipeline.sample_label_sets import label_set_dataset
from tests.data_pipeline.sample_shards import blank_image
from tests.integration.pretrain_processes import tiny_shards

BROKEN = (1, 6, 8)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "sets"])
def test_scores_are_those_of_the_readable_images(plan_of, one_rank, tmp_path, kind):
    changes = {"data.val": tmp_path / "val", "loss.kind": "sigmoid"}
    if kind == "sets":
        label_set_dataset(tmp_path / "val")
        changes["data.train"] = tmp_path / "val"
    else:
        tiny_shards(tmp_path / "val", (7, 6), seed=1)
        changes["loss.kind"] = kind
    images = open_dataset(tmp_path / "val")
    plan = plan_of(changes)
    readable = images.select(np.setdiff1d(np.arange(images.num_images), BROKEN))
    for row in BROKEN:
        blank_image(images, row)
    with open_training(plan) as training:
        quarantine = training.folder.path / "quarantine-validation.jsonl"
        validate(training)
        scores = dict(training.validation)
        listed = [json.loads(line) for line in quarantine.read_text().splitlines()]
        training.plan = replace(plan, validation=readable)
        validate(training)
        expected = dict(training.validation)
        training.step = plan.total_steps
    assert [record["row"] for record in listed] == list(BROKEN)
    assert scores.pop("validation/broken_images") == len(BROKEN)
    assert expected.pop("validation/broken_images") == 0
    assert scores == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert len(scores) == (2 if kind == "sets" else 4)
    assert quarantine.read_text() == ""  # of the last evaluation


def test_past_the_budget_nothing_is_scored(plan_of, one_rank, tmp_path):
    tiny_shards(tmp_path / "val", (12, 6), seed=1)
    (tmp_path / "val" / "part-000000.tar").unlink()
    plan = plan_of({"data.val": tmp_path / "val"})
    with (
        pytest.raises(RefusedInput, match=r"12 of 18 .*quarantine-validation\.jsonl"),
        open_training(plan) as training,
    ):
        validate(training)
    assert not training.validation
