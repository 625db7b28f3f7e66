"""What follows from config, data and ranks, and what is refused before torch is imported."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import RefusedInput
from data_pipeline.index import open_dataset
from pretrain.plan import make_plan
from tests.integration.pretrain_processes import ROOT, SCRIPT, options, tiny_shards


def test_everything_follows_from_config_data_and_ranks(plan_of):
    plan = plan_of(world_size=2, rank=1)
    assert (plan.num_classes, plan.total_steps, plan.warmup_steps) == (4, 12, 3)
    assert (plan.micro_images, plan.accumulation_steps) == (4, 2)
    assert plan.train.num_images == plan.order.num_images == 60
    assert plan.notices == ()


def test_epochs_become_steps_rounded_up(plan_of):
    plan = plan_of({"schedule.total-steps": None, "schedule.epochs": 2.5})
    assert plan.total_steps == 10  # 150 images in batches of 16


def test_a_warmup_that_does_not_fit_is_scaled_down_with_a_notice(plan_of):
    plan = plan_of({"schedule.warmup-steps": 500})
    assert plan.warmup_steps < plan.total_steps and "500" in plan.notices[0]


def test_the_last_step_is_due_for_everything(plan_of):
    plan = plan_of()
    assert [step for step in range(1, 13) if plan.is_due(5, step)] == [5, 10, 12]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train": None}, "data.train is not set"),
        ({"schedule.total-steps": None}, "the length of the run is not set"),
        ({"model.num-classes": 7}, "model.num_classes = 7, but .* has 4 classes"),
        ({"data.eval-resize-px": 12}, "data.eval_resize_px = 12 is below model.image_px = 16"),
        ({"augment.resize-px": 9}, "augment.resize_px = 9 is below model.image_px = 16"),
        ({"run-dir": None}, "give --run-dir"),
        ({"batch.global-images": 18}, "batch.global_images = 18|batch.micro_images = 4"),
        ({"tracking.uri": "nonsense://x"}, "nonsense"),
        ({"data.classes": "clas1"}, r"data\.classes: .*'clas1' \(did you mean 'class1'\?\)"),
        ({"data.exclude": "nowhere"}, r"data\.exclude = nowhere cannot be read"),
        ({"data.classes": "class1", "model.num-classes": 4}, "model.num_classes = 4, but .* has 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message, plan_of):
    with pytest.raises(RefusedInput, match=message):
        plan_of(changes)


def test_state_on_disk_is_refused(plan_of):
    plan = plan_of()
    block = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}
    with pytest.raises(RefusedInput, match=r"offload_optimizer\.device = nvme"):
        make_plan(plan.config.model_copy(update={"deepspeed": block}), plan.ranks)


def test_a_subset_filters_training_images_and_the_classes_of_both(plan_of):
    whole = plan_of()
    plan = plan_of({"data.classes": "class3", "data.images-per-class": 10, "model.num-classes": 1})
    assert plan.num_classes == 1 and plan.train.classes == ("class3",)
    assert plan.train.num_images == plan.order.num_images == 10
    assert set(plan.train.source_row % 4) == set(plan.validation.source_row % 4) == {3}
    assert plan.validation.num_images == 2  # not thinned out: scores stay comparable
    assert "using 10 of 60 images; 1 classes (the data has 4)" in plan.notices[0]
    assert plan.order.identity()["filter_digest"] != whole.order.identity()["filter_digest"]
    assert plan_of({"data.fraction": 0.5, "seed": 3}).train.num_images == 4 * 8


def test_epochs_are_those_of_the_subset(plan_of):
    plan = plan_of({"schedule.total-steps": None, "schedule.epochs": 2, "data.fraction": 0.5})
    assert plan.total_steps == 4  # twice 32 images in batches of 16


def test_an_exclusion_list_filters_the_training_images(plan_of, shards, tmp_path):
    dataset = open_dataset(shards["data.train"])
    named = {"train_shard": [dataset.manifest.shards[0].path], "train_key": [dataset.key(5)]}
    pq.write_table(pa.table(named), tmp_path / "leaks.parquet")
    plan = plan_of({"data.exclude": tmp_path / "leaks.parquet"})
    assert set(range(60)) - set(plan.train.source_row.tolist()) == {5}


def test_validation_images_must_have_the_classes_of_the_training_images(plan_of, tmp_path):
    other = tiny_shards(tmp_path / "other", (8,), seed=2)
    manifest = other / "manifest.json"
    import json

    from data_pipeline.manifest import Manifest, data_digest

    fields = json.loads(manifest.read_text())
    fields["classes"][1] = "zebra"
    loaded = Manifest.load(other)
    classes = tuple(fields["classes"])
    fields["digest"] = data_digest(classes, loaded.shards, loaded.index_digest)
    manifest.write_text(json.dumps(fields))
    with pytest.raises(RefusedInput, match="class 1 is 'zebra' instead of 'class1'"):
        plan_of({"data.val": other})


def test_a_refusal_needs_no_torch(shards, tmp_path):
    """Imports decide how long a refusal takes, whatever the machine is doing meanwhile."""
    arguments = options({**shards, "run-dir": tmp_path / "run", "model.num-classes": 7})
    code = (
        f"import sys, runpy; sys.argv = [{str(SCRIPT)!r}, *{arguments!r}]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'deepspeed', 'mlflow', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.split("\n")[:2] == ["2", "[]"], done.stderr
    assert done.stderr.startswith("error: model.num_classes = 7") and done.stderr.count("\n") == 1


def test_compiling_without_a_compiler_is_refused(plan_of, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RefusedInput, match=r"needs a C\+\+ compiler, and none of g\+\+, clang"):
        plan_of({"compile": True})


def test_the_cooldown_leaves_the_warmup_alone(plan_of):
    plan = plan_of({"schedule.kind": "constant", "schedule.cooldown-steps": 100, "optim.lr": 0.9})
    rates = [plan.learning_rate(step) for step in range(13)]
    assert rates[:4] == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert rates[3:] == pytest.approx([0.1 * left for left in range(9, -1, -1)])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_cooldown_of_what_ends_at_zero_is_refused(plan_of, kind):
    with pytest.raises(RefusedInput, match=f"schedule.kind = {kind} ends at 0 by itself"):
        plan_of({"schedule.kind": kind, "schedule.cooldown-steps": 4})


def test_offloading_what_is_not_divided_is_refused(plan_of):
    with pytest.raises(RefusedInput, match=r"zero\.offload_optimizer needs zero\.stage 1, 2 or 3"):
        plan_of({"zero.stage": 0, "zero.offload-optimizer": True})
