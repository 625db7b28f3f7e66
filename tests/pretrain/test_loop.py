"""Being asked to stop while a run evaluates, which may take longer than a cluster waits; saves that
end together."""

import json

import pytest

from pretrain import loop, session, validation
from pretrain.resume import check_start
from tracking.metric_names import SAVE_STALL_SECONDS, SAVE_WRITE_SECONDS
from training.preemption import EXIT_SAVED


@pytest.mark.parametrize("step", [2, 4])
def test_an_evaluation_is_left_off_and_made_by_the_next_start(
    step, plan_of, one_rank, monkeypatch, tmp_path
):
    """At a step in between, and at the last one."""
    settings = {"schedule.total-steps": 4, "evaluation.every-steps": 2, "optim.ema-decay": 0.8}
    settings |= {"zero.stage": 3, "evaluation.batch-images": 4}
    undisturbed = plan_of({**settings, "run-dir": tmp_path / "undisturbed"})
    assert loop.pretrain(undisturbed) == 0
    one_rank()

    plan = plan_of(settings)
    with monkeypatch.context() as patch:
        passes = ask_to_stop_in_evaluation(step, patch)
        assert loop.pretrain(plan) == EXIT_SAVED
        assert passes == [step]  # not all three batches, once more for the average
    assert status(plan)["state"] == "saved" and not (plan.run_dir / "export").exists()
    one_rank()
    assert check_start(plan) is None
    with monkeypatch.context() as patch:
        ask_to_stop_in_evaluation(step, patch)
        assert loop.pretrain(plan) == EXIT_SAVED
    assert (status(plan)["state"], status(plan)["step"]) == ("saved", step)
    one_rank()
    assert loop.pretrain(plan) == 0

    result, expected = (read(p.run_dir / "result.json") for p in (plan, undisturbed))
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert validation_rows(plan) == validation_rows(undisturbed)


def test_saves_that_end_in_one_step_are_recorded_at_their_own(plan_of, one_rank, caplog):
    """The last save but one becomes a checkpoint in the last step, as the last one does."""
    plan = plan_of({"schedule.total-steps": 3, "checkpoint.every-steps": 1, "data.val": None})
    assert loop.pretrain(plan) == 0
    lines = (plan.run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for name in (SAVE_STALL_SECONDS, SAVE_WRITE_SECONDS):
        assert [row["step"] for row in rows if name in row["values"]] == [1, 2, 3]
    assert not [r for r in caplog.records if "recorded already" in r.getMessage()]


def ask_to_stop_in_evaluation(step, patch) -> list[int]:
    """Ask in the first forward pass of a step's evaluation; gives the step of every such pass."""
    passes: list[int] = []
    forward_of = validation.interruptible_forward

    def counted(training):
        forward = forward_of(training)

        def asked(images):
            if training.step == step:
                passes.append(step)
            return forward(images)

        return asked

    patch.setattr(validation, "interruptible_forward", counted)
    for module in (validation, loop, session):
        patch.setattr(module, "stop_requested", lambda: "test" if passes else None)
    return passes


def read(path):
    return json.loads(path.read_text())


def status(plan):
    return read(plan.run_dir / "status.json")


def validation_rows(plan) -> list[tuple]:
    lines = (plan.run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(r["step"], r["values"]) for r in rows if "validation" in " ".join(r["values"])]
