"""Where a step makes the host wait for the device: once, to know whether there is an update."""

import traceback
from pathlib import Path

import deepspeed
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.session import open_training
from pretrain.step import train_step
from training.phases import OPTIMIZER

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"augment.level": "medium1", "optim.clip-norm": 0.5, "optim.ema-decay": 0.9}
# On a CPU these read a number out of a tensor; on a GPU they wait until it is there.
READING = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


class Reading(TorchDispatchMode):
    """Notes in which phase a number is read out of a tensor, and by which of our files."""

    def __init__(self, phases):
        super().__init__()
        self.phases, self.found = phases, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in READING:
            ours = [
                frame.filename
                for frame in traceback.extract_stack()
                if Path(frame.filename).is_relative_to(ROOT / "pretrain")
                or Path(frame.filename).is_relative_to(ROOT / "training")
            ]
            self.found.append((self.phases.phase, Path(ours[-1]).name))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_numbers_are_read_only_to_decide_on_the_update(
    stage, precision, plan_of, one_rank, monkeypatch
):
    plan = plan_of({**SETTINGS, "zero.stage": stage, "precision": precision})
    waited = []
    with open_training(plan) as training:
        for _ in range(3):  # the first steps make the optimizer's state
            train_step(training)
        accelerator = type(deepspeed.get_accelerator())
        monkeypatch.setattr(accelerator, "synchronize", lambda *_: waited.append(1))
        with Reading(training.phases) as reading:
            train_step(training)
        training.step = plan.total_steps
    assert set(reading.found) == {(OPTIMIZER, "step.py")}
    assert not waited


def test_the_next_batch_is_on_its_way_before_the_host_waits(plan_of, one_rank, monkeypatch):
    plan = plan_of()
    with open_training(plan) as training:
        done = []

        def noted(owner, name):
            plain = getattr(owner, name)

            def call(*arguments, **options):
                done.append(name)
                return plain(*arguments, **options)

            monkeypatch.setattr(owner, name, call)

        noted(training.engine, "backward")
        noted(training.engine, "step")
        noted(training.loader, "copy_ahead")
        train_step(training)
        training.step = plan.total_steps
    assert done == ["backward", "copy_ahead", "step"] * plan.accumulation_steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_only_the_update_waits(plan_of, one_rank, monkeypatch):
    plan = plan_of({**SETTINGS, "precision": "bf16"})
    with open_training(plan) as training:
        for _ in range(3):
            train_step(training)
        plain_step = training.engine.step

        def step() -> None:
            torch.cuda.set_sync_debug_mode("default")
            plain_step()
            torch.cuda.set_sync_debug_mode("error")

        monkeypatch.setattr(training.engine, "step", step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(training)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        training.step = plan.total_steps
