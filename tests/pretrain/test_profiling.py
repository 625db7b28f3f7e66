"""A profile lands in the run folder and changes nothing else."""

import gzip
import json

import pytest
import torch

from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import PretrainConfig
from pretrain import loop
from pretrain.profiling import StepProfiler


def test_profiled_steps_are_in_the_trace_and_the_run_is_the_same(plan_of, one_rank, tmp_path):
    settings = {"schedule.total-steps": 6, "model.dropout": 0.1, "data.val": None}
    assert loop.pretrain(plan_of({**settings, "run-dir": tmp_path / "plain"})) == 0
    one_rank()
    plan = plan_of({**settings, "profile": "2:4"})
    assert loop.pretrain(plan) == 0
    results = [
        json.loads((folder / "result.json").read_text())["weights_sha256"]
        for folder in (tmp_path / "plain", plan.run_dir)
    ]
    assert results[0] == results[1]
    name = "steps-00000002-00000004-rank-00000"
    written = sorted(path.name for path in (plan.run_dir / "profile").iterdir())
    assert written == [f"{name}.json.gz", f"{name}.txt"]
    with gzip.open(plan.run_dir / "profile" / written[0]) as file:
        events = json.load(file)["traceEvents"]
    # Two steps of four micro batches, one optimizer call each.
    steps = [e for e in events if e.get("name") == "Optimizer.step#AdamW.step" and "dur" in e]
    assert len({e["ts"] for e in steps}) >= 2
    told = (plan.run_dir / "profile" / written[1]).read_text()
    assert told.startswith("2 steps, ") and "communicating: " in told and "aten::mm" in told


def test_a_profile_ends_with_the_run_and_other_ranks_make_none(plan_of, one_rank):
    plan = plan_of({"schedule.total-steps": 3, "data.val": None, "profile": "1:50"})
    assert loop.pretrain(plan) == 0
    made = {path.name.split(".")[0] for path in (plan.run_dir / "profile").iterdir()}
    assert made == {"steps-00000001-00000003-rank-00000"}
    wanted = {"profile": "0:1", "profile-ranks": "1"}
    due = [
        StepProfiler(plan_of(wanted, world_size=2, rank=rank), torch.device("cpu")).is_due(0)
        for rank in range(2)
    ]
    assert due == [False, True]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"profile": "12:20"}, "profile = 12:20: the run ends at step 12; give earlier steps"),
        ({"profile": "2:4", "profile-ranks": "7"}, "profile_ranks = 7: .* ranks 0 to 0"),
    ],
)
def test_steps_and_ranks_that_the_run_does_not_have_are_refused(settings, told, plan_of):
    with pytest.raises(RefusedInput, match=told):
        plan_of(settings)


@pytest.mark.parametrize("text", ["5", "5:5", "7:5", "a:b", "1:2:3"])
def test_a_profile_of_no_steps_is_refused(text, plan_of):
    with pytest.raises(RefusedInput, match=f"^command line: profile = {text}: give FIRST:LAST"):
        plan_of({"profile": text})


def test_a_range_that_yaml_took_for_a_number_is_told(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("stage: pretrain\nprofile: 50:55\n")
    with pytest.raises(RefusedInput, match=r"profile.*3055 \(in YAML, quote it\): give FIRST:LAST"):
        load_config(PretrainConfig, ["--config", str(file)], "test")
