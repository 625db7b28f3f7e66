"""Runs of one rank that are interrupted, extended and exported, at every ZeRO stage."""

import json

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from models.weights import load_weights, weights_sha256
from pretrain import loop, session
from pretrain.export import full_weights
from pretrain.failures import TrainingStopped
from pretrain.resume import check_start
from pretrain.session import open_training
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
def test_the_export_is_the_fp32_master_weights(stage, precision, plan_of, one_rank):
    """Against DeepSpeed's own converter, bit for bit; and not the bf16 copies in the module."""
    plan = plan_of(
        {"zero.stage": stage, "precision": precision, "schedule.total-steps": 3, "data.val": None}
    )
    assert loop.pretrain(plan) == 0
    exported = load_weights(plan.run_dir)
    folder = plan.run_dir / "checkpoints" / "step-00000003"
    if stage <= 1:  # DeepSpeed converts neither stage 0 nor what stage 1 writes under bf16
        path = folder / "deepspeed" / "mp_rank_00_model_states.pt"
        expected = torch.load(path, weights_only=False)["module"]
    else:
        expected = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="deepspeed")
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
    monkeypatch.setattr(
        "deepspeed.runtime.engine.DeepSpeedEngine.load_checkpoint", lambda *a, **k: (None, None)
    )
    with pytest.raises(TrainingStopped, match=r"loading .*step-00000002 failed on rank 0"):
        loop.pretrain(longer)


def test_a_full_disk_stops_with_a_sentence_and_spares_earlier_checkpoints(
    plan_of, one_rank, monkeypatch
):
    from deepspeed.runtime.engine import DeepSpeedEngine

    plain = DeepSpeedEngine.save_checkpoint

    def full_at_step_8(engine, folder, **options):
        if "00000008" in folder:
            raise OSError(28, "No space left on device")
        return plain(engine, folder, **options)

    monkeypatch.setattr(DeepSpeedEngine, "save_checkpoint", full_at_step_8)
    plan = plan_of()
    with pytest.raises(TrainingStopped, match=r"rank 0 could not save .* step 8: .*No space left"):
        loop.pretrain(plan)
    assert json.loads((plan.run_dir / "status.json").read_text())["state"] == "failed"
    one_rank()
    monkeypatch.undo()
    assert [path.name for path in (plan.run_dir / "checkpoints").glob("step-*")] == [
        "step-00000004"
    ]


def test_weight_decay_is_looked_at_after_loading(plan_of, one_rank, monkeypatch):
    plan = plan_of({"schedule.total-steps": 2, "data.val": None})
    assert loop.pretrain(plan) == 0
    one_rank()
    from deepspeed.runtime.engine import DeepSpeedEngine

    plain = DeepSpeedEngine.load_checkpoint

    def spoiled(engine, *arguments, **options):
        loaded = plain(engine, *arguments, **options)
        engine.optimizer.param_groups[1]["weight_decay"] = 0.1
        return loaded

    monkeypatch.setattr(DeepSpeedEngine, "load_checkpoint", spoiled)
    with pytest.raises(TrainingStopped, match=r"weight decay .* \[0\.1, 0\.1\]"):
        loop.pretrain(plan_of({"schedule.total-steps": 3, "data.val": None}))


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
