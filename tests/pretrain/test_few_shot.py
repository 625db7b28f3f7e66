"""Few-shot probes while pretraining goes on, against timm and scikit-learn."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from configs.errors import RefusedInput
from data_pipeline.augment import SquareTransform, normalise
from data_pipeline.decode import decode_image
from models.weights import load_weights, model_from_weights
from pretrain.evaluation import evaluate
from pretrain.few_shot import probe_is_due
from pretrain.loop import pretrain
from pretrain.resume import run_identity
from pretrain.session import open_training
from pretrain.step import train_step


@pytest.fixture
def task(shards, tmp_path):
    """The validation set as the test set of a task, the training images as its training set."""
    folder = tmp_path / "dots"
    folder.mkdir()
    for part, option in (("train", "data.train"), ("test", "data.val")):
        (folder / part).symlink_to(shards[option])
    return folder


def reference(run, images, *, shots, seed):
    """Top-1 of plain timm features of the exported weights, and scikit-learn's Ridge."""
    model, _ = model_from_weights(load_weights(run))
    model.eval()

    def features(dataset, rows):
        views = torch.empty(len(rows), 3, 16, 16, dtype=torch.uint8)
        for view, row in zip(views, rows, strict=True):
            file = dataset.shard_path(int(dataset.shard[row])).read_bytes()
            start = int(dataset.offset[row])
            data = file[start : start + int(dataset.size[row])]
            SquareTransform((16, 16))(decode_image(data, max_pixels=10**6), view)
        with torch.no_grad():
            tokens = model.forward_features(normalise(views))
            return model.forward_head(tokens, pre_logits=True).double().numpy()

    train = features(images.train, images.choices[shots, seed])
    mean, deviation = train.mean(0), train.std(0) + 1e-5

    def inputs(values):
        return np.pad((values - mean) / deviation, ((0, 0), (0, 1)), constant_values=100.0)

    targets = 2.0 * np.eye(4)[images.train.label[images.choices[shots, seed]]] - 1.0
    ridge = Ridge(alpha=1024.0, fit_intercept=False).fit(inputs(train), targets)
    answers = ridge.predict(inputs(features(images.test, range(10)))).argmax(1)
    return (answers == images.test.label).mean()


def test_probes_are_logged_and_those_of_a_reference(plan_of, one_rank, task):
    changes = {
        "few-shot.tasks": task,
        "few-shot.every-steps": 2,
        "few-shot.shots": 5,
        "optim.ema-decay": 0.5,
        "schedule.total-steps": 3,
        "tracking.enabled": False,
    }
    plan = plan_of(changes)
    assert pretrain(plan) == 0
    rows = [json.loads(line) for line in (plan.run_dir / "metrics.jsonl").open()]
    name = "few_shot/dots/5_shot_top1"
    steps = [row["step"] for row in rows if name in row["values"]]
    assert steps == [2, 3]
    result = json.loads((plan.run_dir / "result.json").read_text())["metrics"]
    expected = [reference(plan.run_dir, plan.few_shot[0], shots=5, seed=s) for s in range(3)]
    assert result[name] == pytest.approx(np.mean(expected), abs=1e-9)
    assert result[f"{name}_std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-9)
    assert "few_shot_ema/dots/5_shot_top1" in result


def test_probes_change_no_weights(plan_of, one_rank, task, tmp_path):
    digests = []
    for name, changes in (("plain", {}), ("probed", {"few-shot.tasks": task})):
        plan = plan_of(
            {
                **changes,
                "few-shot.every-steps": 1,
                "few-shot.shots": 1,
                "schedule.total-steps": 3,
                "run-dir": tmp_path / name,
            }
        )
        assert pretrain(plan) == 0
        digests.append(json.loads((plan.run_dir / "result.json").read_text())["weights_sha256"])
        one_rank()
    assert digests[0] == digests[1]


def test_a_probe_is_left_off_when_asked_to_stop_and_made_later(
    plan_of, one_rank, task, monkeypatch
):
    plan = plan_of({"few-shot.tasks": task, "few-shot.every-steps": 1, "few-shot.shots": 1})
    with open_training(plan) as training:
        train_step(training)
        training.evaluation_pending = True
        with monkeypatch.context() as asked:
            asked.setattr("pretrain.validation.stop_requested", lambda: "SIGTERM")
            evaluate(training)
        assert training.evaluation_pending and not training.validation
        assert (
            training.engine.module.training and not training.engine.module.head._forward_pre_hooks
        )
        evaluate(training)
        assert not training.evaluation_pending
        assert "few_shot/dots/1_shot_top1" in training.validation
        training.step = plan.total_steps


def test_probes_are_due_by_steps_by_epochs_or_at_the_end(plan_of, task):
    def due(**changes):
        plan = plan_of({"few-shot.tasks": task, "few-shot.shots": 1, **changes})
        return [step for step in range(1, 13) if probe_is_due(plan, step)]

    assert due() == [12]
    assert due(**{"few-shot.every-steps": 5}) == [5, 10, 12]
    assert due(**{"few-shot.every-epochs": 1.0}) == [4, 8, 12]  # 60 images, 16 a step
    assert due(**{"few-shot.every-epochs": 0.01}) == list(range(1, 13))
    assert not probe_is_due(plan_of(), 12)


def test_probes_may_change_when_a_run_goes_on(plan_of, task):
    assert run_identity(plan_of({"few-shot.tasks": task, "few-shot.shots": 1})) == run_identity(
        plan_of()
    )


def test_a_task_that_is_not_there_is_refused_before_training(plan_of, tmp_path):
    with pytest.raises(RefusedInput, match=r"few_shot\.tasks: .*absent has no shards"):
        plan_of({"few-shot.tasks": tmp_path / "absent"})
    with pytest.raises(RefusedInput, match=r"few_shot\.resize_px = 8 is below model\.image_px"):
        plan_of({"few-shot.resize-px": 8})
