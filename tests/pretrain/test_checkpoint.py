"""Runs of one rank that are interrupted, extended and exported, at every ZeRO stage."""

import json
import threading
import time

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from models.weights import load_weights, weights_sha256
from pretrain import loop, saver, session
from pretrain.export import full_weights
from pretrain.failures import TrainingStopped
from pretrain.fragments import held_fragments
from pretrain.resume import check_start
from pretrain.session import open_training
from pretrain.state_files import SavedState
from training.preemption import EXIT_SAVED


def result_of(plan) -> dict:
    return json.loads((plan.run_dir / "result.json").read_text())


def stop_after(step: int, monkeypatch) -> None:
    """Ask to stop once the run has made this many steps."""
    plain, steps = loop.train_step, []

    def counted(training):
        plain(training)
        steps.append(training.step)

    monkeypatch.setattr(loop, "train_step", counted)
    for module in (loop, session):
        monkeypatch.setattr(module, "stop_requested", lambda: "test" if steps[-1] >= step else None)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        pytest.param(0, "fp32"),
        pytest.param(1, "bf16"),
        pytest.param(2, "bf16"),
        pytest.param(3, "fp32"),
    ],
)
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(
    stage, precision, plan_of, one_rank, monkeypatch, tmp_path
):
    settings = {"zero.stage": stage, "precision": precision, "schedule.total-steps": 6}
    settings |= {"optim.ema-decay": 0.8}
    undisturbed = plan_of({**settings, "run-dir": tmp_path / "undisturbed"})
    assert loop.pretrain(undisturbed) == 0
    one_rank()

    plan = plan_of(settings)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert loop.pretrain(plan) == EXIT_SAVED
    one_rank()
    assert check_start(plan) is None
    assert loop.pretrain(plan) == 0

    result, expected = result_of(plan), result_of(undisturbed)
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert "validation_ema/top1" in result["metrics"]
    assert average_sha256(plan) == average_sha256(undisturbed) != result["weights_sha256"]
    assert (result["resumed_from_steps"], expected["resumed_from_steps"]) == ([3], [])
    assert "is finished (step 6)" in check_start(plan)


def test_a_finished_run_can_be_made_longer(plan_of, one_rank):
    plan = plan_of({"schedule.total-steps": 2, "schedule.kind": "constant"})
    assert loop.pretrain(plan) == 0
    one_rank()
    longer = plan_of({"schedule.total-steps": 3, "schedule.kind": "constant"})
    assert check_start(longer) is None
    assert loop.pretrain(longer) == 0
    result = result_of(longer)
    assert (result["steps"], result["images_seen"], result["resumed_from_steps"]) == (3, 48, [2])


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_the_export_is_the_fp32_master_weights(stage, precision, plan_of, one_rank, tmp_path):
    """Against DeepSpeed's own files, bit for bit; and not the bf16 copies in the module."""
    plan = plan_of(
        {"zero.stage": stage, "precision": precision, "schedule.total-steps": 3, "data.val": None}
    )
    with open_training(plan) as training:
        loop.train(training)
        training.engine.save_checkpoint(str(tmp_path), tag="deepspeed", save_latest=False)
    exported = load_weights(plan.run_dir)
    if stage <= 1:  # DeepSpeed converts neither stage 0 nor what stage 1 writes under bf16
        path = tmp_path / "deepspeed" / "mp_rank_00_model_states.pt"
        expected = torch.load(path, weights_only=False)["module"]
    else:
        expected = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="deepspeed")
    assert exported.state_dict.keys() == expected.keys()
    for name, weight in exported.state_dict.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.to(expected[name].dtype), expected[name]), name
    if precision == "bf16":
        name = "blocks.0.attn.qkv.weight"
        weight = exported.state_dict[name]
        assert not torch.equal(weight, weight.bfloat16().float())
    assert result_of(plan)["weights_sha256"] == weights_sha256(exported.state_dict)
    assert exported.card is not None and exported.card.classes == plan.train.classes


def test_a_checkpoint_that_a_rank_cannot_load_stops_all_with_a_sentence(
    plan_of, one_rank, monkeypatch
):
    plan = plan_of({"schedule.total-steps": 2, "data.val": None})
    assert loop.pretrain(plan) == 0
    one_rank()
    longer = plan_of({"schedule.total-steps": 3, "data.val": None})
    read = SavedState.read

    def without_a_moment(saved, name, start, numel):
        return read(saved, name.replace("exp_avg_sq/", "lost/"), start, numel)

    monkeypatch.setattr(SavedState, "read", without_a_moment)
    with pytest.raises(TrainingStopped, match=r"loading .*step-00000002 failed on rank 0: .*lost/"):
        loop.pretrain(longer)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_stops_with_a_sentence_and_spares_earlier_checkpoints(
    in_background, plan_of, one_rank, monkeypatch
):
    plain = saver.write_state

    def full_at_step_8(path, *state):
        if "00000008" in str(path):
            raise OSError(28, "No space left on device")
        plain(path, *state)

    monkeypatch.setattr(saver, "write_state", full_at_step_8)
    plan = plan_of({"checkpoint.in-background": in_background})
    with pytest.raises(
        TrainingStopped, match=r"saving the checkpoint of step 8 failed on rank 0: .*No space left"
    ):
        loop.pretrain(plan)
    status = json.loads((plan.run_dir / "status.json").read_text())
    assert status["state"] == "failed" and "No space left" in status["reason"]
    one_rank()
    assert checkpoints(plan) == ["step-00000004"]


def test_training_goes_on_while_a_save_is_written(plan_of, one_rank, monkeypatch):
    """The writer waits until a later step has been made, and training does not wait for it."""
    plan = plan_of({"schedule.total-steps": 12, "data.val": None})
    plain, step_made, made_meanwhile = saver.write_state, threading.Event(), []
    train_step = loop.train_step

    def counted(training):
        train_step(training)
        if training.saver.is_saving:
            made_meanwhile.append(training.step)
            step_made.set()

    def slow(path, *state):
        assert step_made.wait(60), "training stood still"
        plain(path, *state)

    monkeypatch.setattr(loop, "train_step", counted)
    monkeypatch.setattr(
        saver, "write_state", lambda *a: slow(*a) if "00000004" in str(a[0]) else plain(*a)
    )
    assert loop.pretrain(plan) == 0
    assert made_meanwhile and made_meanwhile[0] == 5
    assert checkpoints(plan) == ["step-00000008", "step-00000012"]
    names = {n for row in metric_rows(plan) for n in row["values"]}
    assert {"throughput/save_stall_seconds", "throughput/save_write_seconds"} <= names


def test_a_run_that_fails_keeps_the_checkpoint_that_was_being_written(
    plan_of, one_rank, monkeypatch
):
    plan = plan_of({"schedule.total-steps": 12, "data.val": None})
    train_step = loop.train_step

    def failing(training):
        if training.step == 4:
            assert training.saver.is_saving and checkpoints(plan) == []
            raise TrainingStopped("the loss is not finite")
        train_step(training)

    monkeypatch.setattr(loop, "train_step", failing)
    monkeypatch.setattr(saver, "write_state", slowed(saver.write_state))  # in flight at step 4
    with pytest.raises(TrainingStopped, match="not finite"):
        loop.pretrain(plan)
    assert checkpoints(plan) == ["step-00000004"]


@pytest.mark.parametrize(
    ("precision", "before", "after"),
    [
        *(("fp32", *stages) for stages in [(0, 1), (1, 3), (3, 1), (1, 2), (2, 0), (3, 0), (3, 3)]),
        *(("bf16", *stages) for stages in [(1, 3), (3, 1), (1, 2), (2, 1), (2, 3)]),
    ],
)
def test_a_run_goes_on_exactly_at_another_zero_stage(precision, before, after, plan_of, one_rank):
    base = {"precision": precision, "data.val": None, "schedule.total-steps": 3}
    base |= {"optim.ema-decay": 0.9}
    first = plan_of({**base, "zero.stage": before})
    with open_training(first) as training:
        loop.train(training)
        saved = whole_state(training)
    one_rank()
    plan = plan_of({**base, "zero.stage": after, "schedule.total-steps": 6})
    with open_training(plan) as training:
        loaded = whole_state(training)
        assert (training.step, training.position) == (3, 48)
        groups = training.engine.optimizer.param_groups
        decay = plan.config.optim.weight_decay
        assert decay > 0 and [g["weight_decay"] for g in groups] == [decay, 0.0]
        compare_with_deepspeed(training.engine, loaded)
        loop.train(training)
        # Adam counted each update once, in every tensor.
        assert training.tensors.updates_made() == 6
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    moments = [name for name in saved if name.startswith("exp_avg_sq/")]
    assert len(moments) == len(saved) // 4 and all(saved[name].any() for name in moments)


def whole_state(training) -> dict[str, torch.Tensor]:
    """All tensors of a run with one rank, flat, by "kind/parameter"."""
    state = {}
    for fragment in held_fragments(training.engine):
        assert fragment.start == 0
        for kind, tensor in training.tensors.tensors_of(fragment).items():
            state[f"{kind}/{fragment.name}"] = tensor.clone()
    return state


def compare_with_deepspeed(engine, state) -> None:
    """DeepSpeed's own reading of the master weights, and the weights that it computes with."""
    for name, parameter in engine.module.named_parameters():
        master = state[f"master/{name}"]
        if engine.zero_optimization_stage() > 0:
            assert torch.equal(safe_get_full_fp32_param(parameter).view(-1), master), name
        with deepspeed.zero.GatheredParameters([parameter]):
            assert torch.equal(parameter.detach().view(-1), master.to(parameter.dtype)), name


def average_sha256(plan) -> str:
    return weights_sha256(load_weights(plan.run_dir / "export-ema").state_dict)


def checkpoints(plan) -> list[str]:
    return sorted(path.name for path in (plan.run_dir / "checkpoints").glob("step-*"))


def metric_rows(plan) -> list[dict]:
    return [json.loads(line) for line in (plan.run_dir / "metrics.jsonl").read_text().splitlines()]


def slowed(write):
    def slow(*arguments):
        time.sleep(0.5)
        write(*arguments)

    return slow


def test_a_folder_in_use_is_refused(plan_of, one_rank):
    from configs.errors import RefusedInput
    from training.run_folder import RunFolder

    plan = plan_of()
    check_start(plan)
    with (
        RunFolder(plan.run_dir).lock(),
        pytest.raises(RefusedInput, match="in use by process"),
        open_training(plan),
    ):
        pass


def test_a_model_says_the_same_before_saving_and_after_loading(plan_of, one_rank):
    plan = plan_of({"zero.stage": 3, "schedule.total-steps": 2, "data.val": None})
    with open_training(plan) as training:
        loop.train(training)
        saved = full_weights(training)
    one_rank()
    with open_training(plan_of({"zero.stage": 3, "data.val": None})) as training:
        assert (training.step, training.position) == (2, 32)
        loaded = full_weights(training)
        training.step = 12
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
