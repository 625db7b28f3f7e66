"""`--validate`: which stage failed, what a run is made to, and what the full run would need."""

import dataclasses

import pytest

from configs.errors import RefusedInput
from launch.validation import command, steps
from launch.validation.needs import needs_text
from launch.validation.small_run import small_plan
from launch.validation.stages import StageFailed, Stages
from launch.validation.steps import Measured, run_stages
from pretrain.failures import TrainingStopped
from pretrain.plan import Ranks
from pretrain.session import open_training
from tests.pretrain.conftest import one_rank, plan_of, shards  # noqa: F401 (fixtures)

MEASURED = Measured("cpu", "fp32", 8.0, 2**30, 5 * 10**9)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (RefusedInput("no such file"), RefusedInput),
        (TrainingStopped("disk full"), StageFailed),
        (ZeroDivisionError("division by zero"), StageFailed),
    ],
)
def test_what_fails_is_told_with_its_stage(problem, kind, capsys):
    stages = Stages(is_main=True)
    with stages.stage("data"):
        pass
    with (
        pytest.raises(kind, match=f"failed at 'save': .*{problem}"),
        stages.stage("save"),
    ):
        raise problem
    assert stages.passed == ["data"]
    assert capsys.readouterr().out.startswith("passed: data (")


def test_a_small_plan_is_the_run_but_short(plan_of, tmp_path):  # noqa: F811
    plan = plan_of(
        {
            "batch.global-images": 1024,
            "batch.micro-images": 256,
            "evaluation.batch-images": 4,
            "tracking.enabled": True,
            "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
        }
    )
    on_gpu, on_cpu = small_plan(plan, "cuda"), small_plan(plan, "cpu")
    assert (on_gpu.micro_images, on_gpu.accumulation_steps) == (256, 2)
    assert on_gpu.config.batch.global_images == 512
    assert 2 <= on_cpu.micro_images <= 256
    assert on_cpu.config.batch.global_images == 2 * on_cpu.micro_images
    for small in (on_gpu, on_cpu):
        assert small.run_dir == tmp_path / "run.validate"
        assert not small.config.tracking.enabled
        assert small.validation.num_images == 8
        assert small.learning_rate(1) == plan.learning_rate(1)
        assert small.config.model == plan.config.model


def test_what_the_full_run_needs(plan_of):  # noqa: F811
    plan = plan_of({"checkpoint.keep": 3, "checkpoint.milestone-every-steps": 4})
    text = needs_text(plan, small_plan(plan, "cpu"), MEASURED, 1, "h100-80gb")
    # 12 steps of 16 images at 8 images/s; 3 + 1 checkpoints and 3 milestones of 5 GB.
    assert "12 steps of 16 images, 3.2 epochs: 24s at this rate" in text
    assert "35.00 GB for checkpoints of 5.00 GB; " in text
    assert "ZeRO 1, micro batch 4 x 4" in text and "fits" in text
    huge = dataclasses.replace(MEASURED, checkpoint_bytes=10**18, images_per_second=16 / 3600)
    text = needs_text(plan, small_plan(plan, "cpu"), huge, 7, "h100-80gb")
    assert "12h00m at this rate" in text
    assert "NOT ENOUGH" in text
    assert "not planned: batch.global_images = 16" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "none"], "--gpus none: give a whole number"),
        (["--gpu"], "--gpu: expected a value"),
        (["--gpu", "h1000"], "'options': --gpu h1000: not in the table"),
        (["--optim.lr", "-1"], "'options': command line: optim.lr = -1"),
        (["--data.train", "/nowhere", "--schedule.total-steps", "1"], "'data': "),
    ],
)
def test_wrong_input_is_refused_with_its_stage(words, told, monkeypatch):
    monkeypatch.setattr(command, "STOP_SIGNALS", ())
    with pytest.raises(RefusedInput, match=told):
        command.run_validation(["--run-dir", "/nowhere/run", *words], Ranks(0, 1, 0, 1))


@pytest.fixture
def few_shot_task(shards, tmp_path):  # noqa: F811
    """A folder with the training images in train/ and the validation images in test/."""
    folder = tmp_path / "dots"
    folder.mkdir()
    for part, option in (("train", "data.train"), ("test", "data.val")):
        (folder / part).symlink_to(shards[option])
    return folder


def test_a_reload_that_brings_back_something_else_fails(
    plan_of,  # noqa: F811
    one_rank,  # noqa: F811
    few_shot_task,
    monkeypatch,
):
    plan = plan_of({"data.val": None, "few-shot.tasks": few_shot_task, "few-shot.shots": 3})
    small = small_plan(plan, "cpu")
    assert list(small.few_shot[0].choices) == [(3, 0)]

    def forgetful(training, found):
        training.step = found.step

    monkeypatch.setattr(steps, "restore", forgetful)
    stages = Stages(is_main=True)
    with (
        pytest.raises(StageFailed, match="'reload': RuntimeError: what was loaded differs"),
        open_training(small) as training,
    ):
        run_stages(training, stages)
    assert stages.passed == ["two steps", "evaluation", "save"]
    assert "few_shot/dots/3_shot_top1" in training.validation
