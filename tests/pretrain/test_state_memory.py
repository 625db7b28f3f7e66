"""The memory model of weights, gradients and optimizer against what a real rank holds."""

import pytest

from pretrain.session import open_training
from tests.pretrain.live_state import OPTIONS, check_counted, count_one_step

OFFLOAD = {"zero.offload-optimizer": True}
EMA = {"optim.ema-decay": 0.99}


def case(name, stage, precision, **changes):
    return pytest.param(stage, precision, changes, id=name)


def slow_case(name, stage, precision, **changes):
    return pytest.param(stage, precision, changes, id=name, marks=pytest.mark.slow)


CASES = [
    *[case(f"zero{stage}-fp32", stage, "fp32") for stage in (0, 1, 2, 3)],
    *[case(f"zero{stage}-bf16", stage, "bf16") for stage in (1, 2, 3)],
    case("zero3-offload-ema", 3, "bf16", **OFFLOAD, **EMA),
    slow_case("zero2-ema", 2, "bf16", **EMA),
    *[slow_case(f"zero{stage}-bf16-offload", stage, "bf16", **OFFLOAD) for stage in (1, 2, 3)],
    *[slow_case(f"zero{stage}-fp32-offload", stage, "fp32", **OFFLOAD) for stage in (1, 2)],
    *[slow_case(f"zero{stage}-fp16", stage, "fp16") for stage in (1, 2, 3)],
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
