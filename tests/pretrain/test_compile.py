"""torch.compile: another way to compute the same, which leaves no trace in checkpoints."""

import os
import shutil

import pytest
import torch
import torch._dynamo.utils
from safetensors import safe_open

from pretrain.checkpoint import finish_saving, save_when_due
from pretrain.export import export
from pretrain.session import open_training
from pretrain.step import train_step

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler for torch.compile"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_compiler
def test_a_run_goes_on_compiled_and_not_compiled(plan_of, one_rank, tmp_path):
    settings = {"model.dropout": 0.0, "optim.lr": 0.01, "data.val": None}

    def go_on(name, stop_at, **changes):
        plan = plan_of(
            {**settings, "run-dir": tmp_path / name, "schedule.total-steps": 6, **changes}
        )
        with open_training(plan) as training:
            while training.step < stop_at:
                train_step(training)
            losses = [float(loss) for loss in training.losses]
            save_when_due(training, is_due=True, saves_written=0)
            finish_saving(training)
            if stop_at == 6:
                export(training)
            training.step = plan.total_steps
        one_rank()
        return losses

    expected = go_on("eager", 6)
    torch._dynamo.utils.counters.clear()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    go_on("mixed", 2)
    go_on("mixed", 4, compile=True, **{"model.checkpoint-blocks": 1})
    # One graph holds the whole model, forward; it was compiled, not passed over.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert go_on("mixed", 6) == pytest.approx(expected, rel=1e-4)
    names = []
    for name in ("eager", "mixed"):
        with safe_open(tmp_path / name / "export" / "model.safetensors", "pt") as weights:
            names.append(sorted(weights.keys()))
    assert names[0] == names[1] and "blocks.0.attn.qkv.weight" in names[0]
