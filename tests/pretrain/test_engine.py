"""Options of model and engine that change where and how is computed, but not what."""

import dataclasses
from itertools import pairwise

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_grad

import pretrain.step
from configs.errors import RefusedInput
from pretrain.checkpoint import finish_saving, save_when_due
from pretrain.export import full_weights
from pretrain.session import open_training
from pretrain.step import train_step

STEPS = 4
SLOW = pytest.mark.slow
STAGES = [
    (1, "bf16"),
    pytest.param(1, "fp32", marks=SLOW),
    pytest.param(2, "bf16", marks=SLOW),
    pytest.param(3, "bf16", marks=SLOW),
]
# Random numbers in every place that draws them, so that running a block twice is put to the test.
DEEP = {"model.depth": 3, "model.dropout": 0.1, "model.stochastic-depth": 0.3, "optim.lr": 0.01}


def run(plan, steps=STEPS, save=False):
    """Losses of the first steps and the fp32 weights after them."""
    with open_training(plan) as training:
        while training.step < steps:
            train_step(training)
        losses, weights = torch.stack(training.losses), full_weights(training)
        if save:
            save_when_due(training, is_due=True, saves_written=0)
            finish_saving(training)
        training.step = plan.total_steps
    return losses, weights


def assert_same_end(first, second):
    """The losses of the last two steps, and all weights."""
    assert torch.equal(first[0][-2:], second[0][-2:])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize(("stage", "precision"), [*STAGES, pytest.param(0, "fp32", marks=SLOW)])
def test_checkpointing_blocks_changes_nothing(stage, precision, plan_of, one_rank, tmp_path):
    settings = {**DEEP, "zero.stage": stage, "precision": precision, "data.val": None}
    expected = run(plan_of(settings))
    one_rank()
    place = {"run-dir": tmp_path / "again", "model.checkpoint-blocks": 2 - stage % 2}
    assert_same_end(run(plan_of({**settings, **place})), expected)


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_offloading_gives_the_same_weights_and_resumes_exactly(
    stage, precision, plan_of, one_rank, tmp_path
):
    """On a CPU both places are host memory; what is shown is that the offloading path is right."""
    settings = {**DEEP, "zero.stage": stage, "precision": precision, "optim.ema-decay": 0.9}
    settings["data.val"] = None
    losses, weights = run(plan_of(settings))
    one_rank()
    settings["zero.offload-optimizer"] = True
    expected = run(plan_of({**settings, "run-dir": tmp_path / "whole"}))
    torch.testing.assert_close(expected[0], losses, rtol=1e-5, atol=0)
    for name in weights:  # the norm is summed in another order; Adam magnifies what is nearly 0
        torch.testing.assert_close(expected[1][name], weights[name], rtol=0, atol=2e-4)
    one_rank()
    resumed = {**settings, "run-dir": tmp_path / "resumed"}
    run(plan_of(resumed), steps=2, save=True)
    one_rank()
    assert_same_end(run(plan_of({**resumed, "resume": "must"})), expected)


@pytest.mark.parametrize("offload", [False, True], ids=["on device", "offloaded"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_accumulate_in_fp32(stage, offload, plan_of, one_rank):
    settings = {"zero.stage": stage, "zero.offload-optimizer": offload, "precision": "bf16"}
    plan = plan_of({**settings, "model.dropout": 0.0, "data.val": None})
    with open_training(plan) as training:
        engine = training.engine
        for _ in range(2):
            train_step(training)
        bias, parts = engine.module.blocks[0].norm1.bias, []
        bias.register_hook(lambda gradient: parts.append(gradient.clone()))
        for micro_step in range(plan.accumulation_steps):
            engine.backward(pretrain.step._loss(training, *next(training.loader).to("cpu")))
            if micro_step + 1 < plan.accumulation_steps:
                engine.step()
        found = safe_get_full_grad(bias)
        engine.step()
        training.step = plan.total_steps
    assert [part.dtype for part in parts] == [torch.bfloat16] * 4
    assert torch.equal(found, sum(part.float() for part in parts))
    assert not torch.equal(found, sum(parts).float())  # it would matter
    assert getattr(engine.optimizer, "cpu_offload", offload) is offload


def with_fp16_options(plan, **options):
    """The plan with options of DeepSpeed's `fp16` block."""
    config = plan.config.model_copy(update={"deepspeed": {"fp16": options}})
    return dataclasses.replace(plan, config=config)


FP16 = {"precision": "fp16", "model.dropout": 0.0, "optim.lr": 0.01, "data.val": None}


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=SLOW), pytest.param(3, marks=SLOW)])
def test_fp16_learns_as_fp32_does(stage, plan_of, one_rank, fp16_on_cpu, tmp_path):
    settings = {**FP16, "zero.stage": stage}
    exact, _ = run(plan_of({**settings, "precision": "fp32", "run-dir": tmp_path / "fp32"}), 8)
    one_rank()
    losses, _ = run(plan_of(settings), 8)
    torch.testing.assert_close(losses, exact, rtol=1e-3, atol=0)
    assert exact[-1] < exact[0] - 0.2


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=SLOW)])
def test_overflow_lowers_the_loss_scale_which_resume_keeps(
    stage, plan_of, one_rank, fp16_on_cpu, tmp_path, caplog
):
    """From a scale that is too high it falls until the gradient fits, and grows again later."""
    caplog.set_level("INFO")

    def scales_of(name, stop_at):
        plan = plan_of({**FP16, "zero.stage": stage, "run-dir": tmp_path / name})
        plan = with_fp16_options(plan, initial_scale_power=20, loss_scale_window=3, hysteresis=1)
        scales = []
        with open_training(plan) as training:
            while training.step < stop_at:
                train_step(training)
                scales.append(training.loss_scale.value)
            weights, skipped = full_weights(training), training.health.skipped
            save_when_due(training, is_due=True, saves_written=0)
            finish_saving(training)
            training.step = plan.total_steps
        one_rank()
        return scales, weights, skipped

    scales, weights, skipped = scales_of("whole", 12)
    falls = sum(after < before for before, after in zip([2**20, *scales], scales, strict=False))
    assert falls == skipped > 0
    assert any(after > before for before, after in pairwise(scales))
    assert caplog.text.count("a gradient overflowed fp16; this update is left out") == skipped
    first, _, _ = scales_of("resumed", 7)
    second, resumed_weights, resumed_skipped = scales_of("resumed", 12)
    assert (first + second, resumed_skipped) == (scales, skipped)
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


def test_the_loss_scale_goes_on_at_another_stage(plan_of, one_rank, fp16_on_cpu):
    for stage in (3, 1):
        plan = plan_of({**FP16, "zero.stage": stage})
        with open_training(with_fp16_options(plan, initial_scale_power=20)) as training:
            if stage == 3:
                for _ in range(4):
                    train_step(training)
                saved = training.loss_scale.to_json()
                save_when_due(training, is_due=True, saves_written=0)
                finish_saving(training)
            found = training.loss_scale.to_json()
            training.step = plan.total_steps
        one_rank()
    assert found == saved and saved["cur_scale"] < 2**20 and saved["cur_iter"] == 4


def test_a_loss_that_is_no_number_is_not_put_down_to_fp16(
    plan_of, one_rank, fp16_on_cpu, monkeypatch
):
    plan = plan_of({**FP16, "health.max-skipped": 1})
    with open_training(plan) as training:
        plain = pretrain.step._loss
        monkeypatch.setattr(pretrain.step, "_loss", lambda *given: plain(*given) * float("nan"))
        before = full_weights(training)
        train_step(training)
        assert training.health.trouble is None
        train_step(training)
        assert "the loss is not finite on rank 0" in training.health.trouble.reason
        after = full_weights(training)
        assert all(torch.equal(before[name], after[name]) for name in before)
        training.step = plan.total_steps


def test_a_scale_that_cannot_fall_is_trouble_and_no_crash(plan_of, one_rank, fp16_on_cpu):
    plan = with_fp16_options(
        plan_of({**FP16, "health.max-skipped": 1}), initial_scale_power=1, hysteresis=1
    )
    with open_training(plan) as training:
        head = training.engine.module.head.weight
        hook = head.register_hook(lambda gradient: gradient * float("inf"))
        for _ in range(3):
            train_step(training)
        hook.remove()
        assert training.loss_scale.value == 1.0
        assert "the gradient's norm is not finite" in training.health.trouble.reason
        training.step = plan.total_steps


def test_fp16_is_refused_where_it_is_not_multiplied(plan_of, one_rank, monkeypatch):
    accelerator = deepspeed.get_accelerator()
    monkeypatch.setattr(type(accelerator), "is_fp16_supported", lambda _: False)
    with pytest.raises(RefusedInput, match="does not multiply fp16"), open_training(plan_of(FP16)):
        pass


def test_what_deepspeed_does_not_know_is_refused(plan_of, one_rank):
    plan = plan_of({"data.val": None})
    block = {"zero_optimization": {"stagee": 3}}
    config = plan.config.model_copy(update={"deepspeed": block})
    told = r"stagee = 3: extra inputs .*correct the deepspeed: block"
    with (
        pytest.raises(RefusedInput, match=told),
        open_training(dataclasses.replace(plan, config=config)),
    ):
        pass
