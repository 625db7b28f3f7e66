"""What two ranks under ZeRO 3 score while pretraining is what one process scores afterwards.

Neither the 11 validation images nor the 13 test images of the probe divide by two ranks, and the
parts do not fill the batches.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from configs.few_shot import ProbeConfig
from data_pipeline.augment import EvalTransform, SquareTransform, normalise
from data_pipeline.few_shot_images import open_few_shot_tasks
from data_pipeline.index import open_dataset
from data_pipeline.loader import EvalLoader
from models.weights import load_weights, model_from_weights
from tests.integration.pretrain_processes import options, read_json, run_ranks, tiny_shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

CHANGES = {
    "zero.stage": 3,
    "schedule.total-steps": 6,
    "evaluation.batch-images": 4,
    "few-shot.every-steps": 3,
    "few-shot.shots": 3,
    "optim.lr": 0.003,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Options that name training and validation shards and a task of its own images."""
    folder = tmp_path_factory.mktemp("shards")
    tiny_shards(folder / "task" / "train", (9, 12), seed=2)
    tiny_shards(folder / "task" / "test", (13,), seed=3)
    return {
        "data.train": tiny_shards(folder / "train", (33, 27), seed=0),
        "data.val": tiny_shards(folder / "val", (11,), seed=1),
        "few-shot.tasks": folder / "task",
    }


def seen(dataset, transform):
    """All images as the model is given them, in one batch, and their labels."""
    (batch,) = EvalLoader(dataset, transform=transform, batch_images=dataset.num_images)
    return normalise(batch.images), batch.labels


def expected_scores(run, places):
    model, _ = model_from_weights(load_weights(run))
    model.eval()
    with torch.no_grad():
        images, labels = seen(open_dataset(places["data.val"]), EvalTransform((16, 16)))
        logits = model(images)
        (task,) = open_few_shot_tasks((str(places["few-shot.tasks"]),), ProbeConfig(shots=(3,)))
        parts = [seen(part, SquareTransform((16, 16))) for part in (task.train, task.test)]
        features = [
            model.forward_head(model.forward_features(x), pre_logits=True).double().numpy()
            for x, _ in parts
        ]
    top1 = [probe_top1(features, parts, rows) for rows in task.choices.values()]
    hits = logits.argmax(1) == labels
    return {
        "validation/top1": hits.double().mean().item(),
        "validation/mean_per_class": np.mean([hits[labels == c].double().mean() for c in range(4)]),
        "validation/loss": F.cross_entropy(logits, labels).item(),
        "few_shot/task/3_shot_top1": np.mean(top1),
        "few_shot/task/3_shot_top1_std": np.std(top1, ddof=1),
    }


def probe_top1(features, parts, rows):
    (train, test), labels = features, [part[1].numpy() for part in parts]
    mean, deviation = train[rows].mean(0), train[rows].std(0) + 1e-5
    train, test = (
        np.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=100.0)
        for x in (train[rows], test)
    )
    targets = 2.0 * np.eye(4)[labels[0][rows]] - 1.0
    ridge = Ridge(alpha=1024.0, fit_intercept=False).fit(train, targets)
    return (ridge.predict(test).argmax(1) == labels[1]).mean()


def test_scores_over_two_ranks_are_exact(places, tmp_path):
    run = tmp_path / "run"
    ended = run_ranks(2, options({**places, **CHANGES, "run-dir": run}))
    assert ended.codes == [0, 0], ended.texts
    result = read_json(run / "result.json")
    assert result["world_size"] == 2
    for name, value in expected_scores(run, places).items():
        assert result["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [r["step"] for r in rows if "few_shot/task/3_shot_top1" in r["values"]] == [3, 6]
