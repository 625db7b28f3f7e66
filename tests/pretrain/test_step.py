"""One update: the same as plain PyTorch's, and none at all where something is not finite."""

import pytest
import torch

import pretrain.step
from data_pipeline.augment import normalise
from models.param_groups import weight_decay_groups
from models.zoo import build_model
from pretrain.export import full_weights
from pretrain.session import open_training
from pretrain.step import train_step

ALL_STAGES = [
    *[pytest.param(stage, "fp32", id=f"zero{stage}-fp32") for stage in (0, 1, 2, 3)],
    *[pytest.param(stage, "bf16", id=f"zero{stage}-bf16") for stage in (1, 2, 3)],
]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_steps_are_those_of_plain_pytorch(stage, plan_of, one_rank, tmp_path):
    """Accumulation, clipping, weight decay groups and learning rates, against 20 lines of torch."""
    plan = plan_of(
        {"zero.stage": stage, "model.dropout": 0.0, "optim.clip-norm": 0.5, "optim.lr": 0.01}
    )
    with open_training(plan) as training:
        reference = build_model(training.architecture, seed=plan.config.seed)
        optimizer = torch.optim.AdamW(
            weight_decay_groups(reference, plan.config.optim.weight_decay)
        )
        batches = [next(training.loader) for _ in range(5 * plan.accumulation_steps)]
        training.loader.skip_to(0)
        norms = []
        for step in range(5):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate(step)
            images, labels = (
                torch.cat([getattr(b, name) for b in batches[4 * step : 4 * step + 4]])
                for name in ("images", "labels")
            )
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(reference(normalise(images)), labels).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5).item())
            optimizer.step()
            train_step(training)
            assert float(training.gradient_norm) == pytest.approx(norms[-1], rel=1e-4)
        assert min(norms) > 0.5  # so that clipping was put to the test
        ours = full_weights(training)
        training.step = plan.total_steps
    for name, weight in reference.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-4, msg=name)


@pytest.mark.parametrize(("stage", "precision"), ALL_STAGES)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nothing_changes_when_it_is_not_finite(
    what, stage, precision, plan_of, one_rank, monkeypatch, caplog, tmp_path
):
    settings = {"zero.stage": stage, "precision": precision, "model.dropout": 0.0}
    plan = plan_of(settings)
    with open_training(plan) as training:
        for _ in range(3):
            train_step(training)
        before = full_weights(training)
        with monkeypatch.context() as patch:
            if what == "loss":
                spoil_one_micro_batch(patch)
                hook = None
            else:
                head = training.engine.module.head.weight
                hook = head.register_hook(lambda gradient: gradient * float("nan"))
            train_step(training)
        after = full_weights(training)
        assert all(torch.equal(before[name], after[name]) for name in before)
        blamed = (
            "the loss is not finite on rank 0, positions 52" if what == "loss" else "though the"
        )
        assert "step 3 (positions 48 to 63)" in caplog.text and blamed in caplog.text
        assert (training.step, training.position, training.health.skipped) == (4, 64, 1)
        # The next update is as if the bad batch had never been read: nothing of it is left.
        if hook is not None:
            hook.remove()
        train_step(training)
        went_on = full_weights(training)
        training.step = plan.total_steps
    one_rank()
    around = plan_of({**settings, "run-dir": tmp_path / "around"})
    with open_training(around) as training:
        for _ in range(3):
            train_step(training)
        training.step, training.position = 4, 64
        training.loader.skip_to(64)
        train_step(training)
        expected = full_weights(training)
        training.step = plan.total_steps
    assert all(torch.equal(went_on[name], expected[name]) for name in expected)
    assert any(not torch.equal(went_on[name], before[name]) for name in before)


def spoil_one_micro_batch(monkeypatch) -> None:
    """The second loss from now on is infinite, with a gradient that would be finite."""
    plain, calls = pretrain.step._loss, []

    def spoiled(*arguments):
        calls.append(1)
        return plain(*arguments) + (float("inf") if len(calls) == 2 else 0.0)

    monkeypatch.setattr(pretrain.step, "_loss", spoiled)
