"""The moving average of the weights, at every ZeRO stage."""

import pytest
import torch

from pretrain.export import full_weights
from pretrain.session import open_training
from pretrain.step import train_step

DECAY = 0.3


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (3, "fp32")]
)
def test_it_follows_the_weights_and_looking_at_it_changes_nothing(
    stage, precision, plan_of, one_rank
):
    settings = {"zero.stage": stage, "precision": precision, "optim.lr": 0.01, "data.val": None}
    plan = plan_of({**settings, "optim.ema-decay": DECAY})
    with open_training(plan) as training:
        expected = full_weights(training)
        for decay in (1 / 10, 2 / 11, 3 / 12, DECAY, DECAY):  # 4/13 is above 0.3
            train_step(training)
            weights = full_weights(training)
            expected = {
                name: decay * expected[name] + (1 - decay) * weights[name] for name in weights
            }
        with training.average.in_place():
            average = full_weights(training)
            computed_with = training.engine.module.norm.weight.detach().clone()
        assert all(torch.equal(w, weights[name]) for name, w in full_weights(training).items())
        training.step = plan.total_steps
    for name in average:
        torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(average[name], weights[name]) for name in average)
    if computed_with.numel():  # stage 3 keeps only a part of larger ones
        assert torch.equal(computed_with, average["norm.weight"].to(computed_with.dtype))
