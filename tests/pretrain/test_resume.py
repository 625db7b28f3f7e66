"""What may change when a run is resumed, and what is refused by name."""

import pytest

from configs.errors import RefusedInput
from pretrain.resume import check_same_run, check_start, run_identity


def saved_by(plan, step=4) -> dict:
    return {"identity": run_identity(plan, "fp32"), "step": step, "zero_stage": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule.total-steps": 50},
        {"schedule.total-steps": None, "schedule.epochs": 3},
        {"logging.every-steps": 1, "evaluation.every-steps": 2, "evaluation.batch-images": 4},
        {"checkpoint.every-steps": 1, "checkpoint.keep": 7, "loader.threads": 3},
        {"data.val": None, "data.max-broken-fraction": 0.5, "tracking.run-name": "other"},
        {"model.num-classes": 4, "batch.micro-images": None, "batch.accumulation-steps": 2},
        {"batch.micro-images": 8, "zero.stage": 3, "checkpoint.in-background": False},
    ],
)
def test_what_does_not_change_the_weights_may_change(changes, plan_of, tmp_path):
    check_same_run(saved_by(plan_of()), plan_of(changes), tmp_path, "fp32")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"optim.lr": 0.5}, "optim.lr was 0.001, now 0.5"),
        ({"batch.global-images": 32}, "batch.global_images was 16, now 32"),
        ({"schedule.warmup-steps": 4}, "schedule.warmup_steps was 3, now 4"),
        ({"model.depth": 2}, "model.depth was 1, now 2"),
        ({"seed": 5}, "seed was 0, now 5"),
        ({"data.streams": 12}, "data.streams was 6, now 12"),
    ],
)
def test_the_rest_is_refused_with_both_values(changes, difference, plan_of, tmp_path):
    with pytest.raises(RefusedInput, match=difference):
        check_same_run(saved_by(plan_of()), plan_of(changes), tmp_path, "fp32")


def test_other_data_in_the_same_folder_is_refused(plan_of, shards, tmp_path):
    other = plan_of({"data.train": shards["data.val"]})
    with pytest.raises(RefusedInput, match=r"sample order: .*digest"):
        check_same_run(saved_by(plan_of()), other, tmp_path, "fp32")


def test_another_subset_is_refused_and_the_same_by_another_name_is_not(plan_of, tmp_path):
    saved = saved_by(plan_of({"data.classes": "class1"}))
    (tmp_path / "names.txt").write_text("class1")
    same = plan_of({"data.classes": f"@{tmp_path / 'names.txt'}"})
    check_same_run(saved, same, tmp_path, "fp32")
    for changes in ({"data.classes": "class2"}, {"data.classes": "class1", "data.fraction": 0.5}):
        with pytest.raises(RefusedInput, match="sample order: filter_digest was"):
            check_same_run(saved, plan_of(changes), tmp_path, "fp32")


def test_a_run_from_before_there_were_subsets_goes_on(plan_of, tmp_path):
    saved = saved_by(plan_of())
    for name in ("data.fraction", "data.images_per_class", "data.subset_seed"):
        del saved["identity"][name]
    check_same_run(saved, plan_of(), tmp_path, "fp32")


def test_another_precision_is_refused_once_it_is_known(plan_of, tmp_path):
    with pytest.raises(RefusedInput, match="precision was fp32, now bf16"):
        check_same_run(saved_by(plan_of()), plan_of(), tmp_path, "bf16")
    check_same_run(saved_by(plan_of()), plan_of(), tmp_path, None)


def test_another_number_of_ranks_may_go_on(plan_of, tmp_path):
    check_same_run(saved_by(plan_of(world_size=2)), plan_of(), tmp_path, "fp32")


def test_a_checkpoint_in_the_format_of_before_is_refused(plan_of, tmp_path):
    saved = saved_by(plan_of())
    del saved["zero_stage"]
    with pytest.raises(RefusedInput, match="older version"):
        check_same_run(saved, plan_of(), tmp_path, "fp32")


def test_an_end_before_the_checkpoint_is_refused(plan_of, tmp_path):
    with pytest.raises(RefusedInput, match=r"total_steps = 12 lies before .* at least 20"):
        check_same_run(saved_by(plan_of(), step=20), plan_of(), tmp_path, "fp32")


def test_an_option_newer_than_the_checkpoint_counts_with_its_default(plan_of, tmp_path):
    saved = saved_by(plan_of())
    del saved["identity"]["loss.label_smoothing"]
    check_same_run(saved, plan_of(), tmp_path, "fp32")
    with pytest.raises(RefusedInput, match=r"label_smoothing was 0\.0, now 0\.2"):
        check_same_run(saved, plan_of({"loss.label-smoothing": 0.2}), tmp_path, "fp32")


def test_an_unused_folder_has_nothing_to_resume(plan_of):
    assert check_start(plan_of()) is None
    with pytest.raises(RefusedInput, match="resume = must"):
        check_start(plan_of({"resume": "must"}))
