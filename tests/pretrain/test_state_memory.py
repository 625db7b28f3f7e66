"""The memory model of weights, gradients and optimizer against what a real rank holds."""

import pytest

from pretrain.session import open_training
from tests.pretrain.live_state import OPTIONS, check_counted, count_one_step

OFFLOAD = {"zero.offload-optimizer": True}
EMA = {"optim.ema-decay": 0.99}

CASES = [
    *[pytest.param(stage, "fp32", {}, id=f"zero{stage}-fp32") for stage in (0, 1, 2, 3)],
    *[pytest.param(stage, "bf16", {}, id=f"zero{stage}-bf16") for stage in (1, 2, 3)],
    *[pytest.param(stage, "bf16", OFFLOAD, id=f"zero{stage}-offload") for stage in (1, 2, 3)],
    pytest.param(1, "fp32", OFFLOAD, id="zero1-fp32-offload"),
    pytest.param(2, "fp32", OFFLOAD, id="zero2-fp32-offload"),
    *[pytest.param(stage, "fp16", {}, id=f"zero{stage}-fp16") for stage in (1, 2, 3)],
    pytest.param(2, "bf16", EMA, id="zero2-ema"),
    pytest.param(3, "bf16", {**OFFLOAD, **EMA}, id="zero3-offload-ema"),
]


@pytest.mark.parametrize(("stage", "precision", "changes"), CASES)
def test_one_rank_holds_what_the_model_says(
    stage, precision, changes, plan_of, one_rank, fp16_on_cpu
):
    plan = plan_of({**OPTIONS, "zero.stage": stage, "precision": precision, **changes})
    with open_training(plan) as training:
        sizes = [getattr(p, "ds_numel", p.numel()) for p in training.engine.module.parameters()]
        counted = count_one_step(training)
        training.step = plan.total_steps
    check_counted(counted, sizes, plan, precision)
