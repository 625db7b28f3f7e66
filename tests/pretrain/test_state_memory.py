"""The memory model of weights, gradients and optimizer against what a real rank holds."""

import pytest

from pretrain.session import open_training
from pretrain.state_memory import checkpoint_bytes, state_memory
from tests.pretrain.live_state import OPTIONS, count_one_step

ALL_STAGES = [
    *[pytest.param(stage, "fp32", id=f"zero{stage}-fp32") for stage in (0, 1, 2, 3)],
    *[pytest.param(stage, "bf16", id=f"zero{stage}-bf16") for stage in (1, 2, 3)],
]


@pytest.mark.parametrize(("stage", "precision"), ALL_STAGES)
def test_one_rank_holds_what_the_model_says(stage, precision, plan_of, one_rank):
    plan = plan_of({**OPTIONS, "zero.stage": stage, "precision": precision})
    with open_training(plan) as training:
        sizes = [getattr(p, "ds_numel", p.numel()) for p in training.engine.module.parameters()]
        counted = count_one_step(training)
        training.step = plan.total_steps
    told = state_memory(sizes, stage=stage, world_size=1, precision=precision, zero_options={})
    assert counted["weights"] == pytest.approx(told.weights, rel=0.1)
    assert counted["optimizer"] == pytest.approx(told.optimizer, rel=0.1)
    assert counted["gradients"] == pytest.approx(told.gradients, rel=0.1)
    files = checkpoint_bytes(sum(sizes))
    assert counted["checkpoint"] == pytest.approx(files, rel=0.1)
