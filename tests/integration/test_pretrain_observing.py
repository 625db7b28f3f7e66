"""What two ranks say about themselves: norms as one plain process has them, shares of the time."""

import json

import pytest

from pretrain.session import open_training
from tests.integration.pretrain_processes import options, run_ranks, tiny_shards
from tests.pretrain.conftest import one_rank, plan_of  # noqa: F401 (fixtures)
from tests.pretrain.plain_training import TOLERANCE, batches_of, expected_norms

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS, CLIP = 3, 0.5
SETTINGS = {
    "model.depth": 2,
    "model.dropout": 0.0,
    "optim.clip-norm": CLIP,
    "optim.lr": 0.001,
    "schedule.total-steps": STEPS,
    "schedule.warmup-steps": 0,
    "logging.every-steps": 1,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return {
        "data.train": tiny_shards(tmp_path_factory.mktemp("shards") / "train", (33, 27), seed=0)
    }


@pytest.fixture
def expected(plan_of, one_rank):  # noqa: F811
    """The norms of every step, by plain PyTorch in this process."""
    plan = plan_of(SETTINGS)
    with open_training(plan) as training:
        batches = batches_of(training.loader, plan, STEPS)
        yield list(expected_norms(plan, training.architecture, batches, CLIP))
        training.step = plan.total_steps


def logged(run_dir):
    """Rows of train/loss: values by step."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["values"] for row in rows if "train/loss" in row["values"]}


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_two_ranks_log_the_norms_of_the_whole_model(stage, precision, shards, expected, tmp_path):
    run_dir = tmp_path / "two"
    given = {**shards, **SETTINGS, "zero.stage": stage, "precision": precision, "run-dir": run_dir}
    ended = run_ranks(2, options(given))
    assert ended.codes == [0, 0], ended.texts
    rows = logged(run_dir)
    assert list(rows) == [1, 2, 3]
    for metrics, row in zip(expected, rows.values(), strict=True):
        told = {name: row[name] for name in metrics}
        assert told == pytest.approx(metrics, rel=TOLERANCE[precision])
        shares = {name: value for name, value in row.items() if name.startswith("time/")}
        worst = shares.pop("time/data_worst_rank")
        assert worst >= shares["time/data"] > 0.0
        assert sum(shares.values()) == pytest.approx(1.0)
        assert {"time/forward", "time/backward", "time/optimizer", "time/logging"} <= set(shares)
