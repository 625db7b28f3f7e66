"""The demo's commands and its closing table; the commands themselves are tested elsewhere."""

import json
import sys
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from launch.demo import ROOT, Stage, comparison, run_stage, stages


def result(top1, steps=150):
    return {"steps": steps, "seconds": 12.4, "test": {"top1": top1}}


@pytest.mark.parametrize(("num_gpus", "ranks"), [(0, "2"), (1, "1"), (8, "8")])
def test_deepspeed_gets_all_gpus_or_two_cpu_ranks(num_gpus, ranks):
    command = stages(num_gpus)[1].command
    assert Path(command[0]).name == "deepspeed"
    assert command[command.index("--num_gpus") + 1] == ranks


def test_the_two_finetunings_differ_in_weights_and_folder_only():
    pretrained, scratch = (stage.command for stage in stages(0)[2:])
    different = [(a, b) for a, b in zip(pretrained, scratch, strict=True) if a != b]
    assert different == [
        ("runs/demo-pretrain", "scratch"),
        ("runs/demo-finetune", "runs/demo-scratch"),
    ]


def test_every_file_a_stage_names_exists():
    for stage in stages(0):
        for word in stage.command[1:]:
            if word.endswith((".py", ".yaml")):
                assert (ROOT / word).is_file(), word


def test_the_table_shows_what_was_measured():
    table = comparison(result(0.0, steps=1200), result(0.6125), result(0.285))
    rows = [line.split() for line in table.splitlines()]
    assert rows[2] == ["fractals,", "then", "digits", "1200", "150", "61.3%", "12"]
    assert rows[3] == ["digits", "from", "scratch", "0", "150", "28.5%", "12"]
    assert "by +32.8 points" in table


def test_a_loss_is_reported_as_a_loss():
    assert "by -10.0 points" in comparison(result(0.0), result(0.2), result(0.3))


def test_a_stage_without_a_result_is_refused(tmp_path, capfd):
    stage = Stage("1/1  nothing", (sys.executable, "-c", "print('ran')"), tmp_path / "result.json")
    with pytest.raises(RefusedInput, match=r"exit code 0 and without .*result\.json"):
        run_stage(stage)
    assert "ran" in capfd.readouterr().out


def test_a_failing_stage_is_refused_with_its_exit_code(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({}))
    command = (sys.executable, "-c", "raise SystemExit(7)")
    with pytest.raises(RefusedInput, match="exit code 7; `make demo` goes on"):
        run_stage(Stage("1/1  failure", command, tmp_path / "result.json"))
