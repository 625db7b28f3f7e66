"""Norms by groups of layers, against plain PyTorch; two ranks in tests/integration."""

import pytest

from pretrain.session import open_training
from pretrain.step import train_step
from tests.pretrain.plain_training import TOLERANCE, batches_of, expected_norms
from tests.pretrain.test_engine import with_fp16_options
from tests.pretrain.test_step import spoil_one_micro_batch

CLIP = 0.5


@pytest.mark.parametrize(
    ("stage", "precision", "offload"),
    [
        (0, "fp32", False),
        (1, "fp32", True),
        (1, "bf16", False),
        (2, "fp32", False),
        (2, "fp16", False),
        (3, "fp32", False),
        (3, "bf16", True),
    ],
)
def test_norms_are_those_of_plain_pytorch(
    stage,
    precision,
    offload,
    plan_of,
    one_rank,
    fp16_on_cpu,
):
    settings = {"zero.stage": stage, "precision": precision, "logging.every-steps": 1}
    settings["zero.offload-optimizer"] = offload
    plan = plan_of({**settings, "model.dropout": 0.0, "optim.clip-norm": CLIP, "optim.lr": 0.01})
    if precision == "fp16":
        plan = with_fp16_options(plan, initial_scale_power=8)
    with open_training(plan) as training:
        batches = batches_of(training.loader, plan, 3)
        for expected in expected_norms(plan, training.architecture, batches, CLIP):
            train_step(training)
            told = training.norms.read(float(training.gradient_norm))
            assert told == pytest.approx(expected, rel=TOLERANCE[precision])
        assert float(training.gradient_norm) > CLIP  # so that the clipped gradient was scaled back
        squares = sum(v**2 for name, v in told.items() if name.startswith("grad_norm/"))
        assert squares**0.5 == pytest.approx(float(training.gradient_norm), rel=1e-5)
        training.step = plan.total_steps


def test_only_logging_steps_are_looked_at_and_not_those_left_out(plan_of, one_rank, monkeypatch):
    plan = plan_of({"logging.every-steps": 2})
    with open_training(plan) as training:
        train_step(training)
        assert training.norms.read(1.0) == {}
        train_step(training)
        assert "grad_norm/head" in training.norms.read(1.0)
        train_step(training)
        with monkeypatch.context() as patch:
            spoil_one_micro_batch(patch)
            train_step(training)
        assert training.health.skipped == 1
        assert training.norms.read(1.0) == {}
        training.step = plan.total_steps


def test_they_can_be_switched_off(plan_of, one_rank):
    plan = plan_of({"logging.group-norms": False, "logging.every-steps": 1})
    with open_training(plan) as training:
        train_step(training)
        assert training.norms is None
        training.step = plan.total_steps
