"""`python -m launch.submit` with a played sbatch: what is asked of Slurm, what is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.command_line import run_command
from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import FinetuneConfig, PretrainConfig
from launch.submission.options import time_seconds
from launch.submission.site import SiteConfig, read_site
from launch.submission.sweep import members
from launch.submit import main
from tests.integration.pretrain_processes import ROOT
from tests.launch.slurm_commands import path_with, play
from tracking.provenance import git_state


def record(folder: str) -> dict:
    return json.loads(Path(folder, "slurm", "submission.json").read_text())


def test_a_run_is_submitted_and_told_how_to_follow(submit, capsys):
    asked = submit("--seed", "3")
    assert asked == ["--parsable my runs/b16/slurm/pretrain.sbatch"]
    told = capsys.readouterr().out
    assert "submitted job 101" in told and "squeue --jobs 101" in told
    assert "python -m launch.status 'my runs/b16'" in told
    assert "tail -F 'my runs/b16/slurm/pretrain-101.log'" in told
    # The run starts from these very options, whatever becomes of the file they came from.
    saved = ["--config", "my runs/b16/slurm/config.yaml"]
    config = load_config(PretrainConfig, saved, "test").config
    assert (config.seed, config.run_dir, config.resume) == (3, Path("my runs/b16"), "auto")
    script = Path("my runs/b16/slurm/pretrain.sbatch").read_text()
    assert "runs=('my runs/b16')" in script and "#SBATCH --nodes=2" in script
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=30
    ).stdout.strip()
    written = record("my runs/b16")
    assert written["jobs"][0]["job_id"] == "101"
    assert written["commit"] == (commit or "unknown") and f"submitted_commit={commit}" in script
    patch = Path("my runs/b16/slurm/uncommitted.patch")
    assert patch.exists() == bool(written["dirty"])


def test_finetuning_is_chained_to_the_weights_of_its_pretraining(submit):
    asked = submit(
        "--then", "finetune", "--tasks", "digits,cifar10", "--finetune-time", "30",
        "--finetune-options", "--resolution 32 --learning-rates 0.01 0.03",
    )  # fmt: skip
    assert asked[1] == (
        "--parsable --dependency=afterok:101 --kill-on-invalid-dep=yes "
        "my runs/b16/slurm/finetune.sbatch"
    )
    script = Path("my runs/b16/slurm/finetune.sbatch").read_text()
    lines = {"#SBATCH --array=0-1", "#SBATCH --time=30", "#SBATCH --nodes=1"}
    assert lines <= set(script.splitlines())
    folder = "my runs/finetune-cifar10-b16"
    assert f"runs=('my runs/finetune-digits-b16' '{folder}')" in script
    saved = ["--config", f"{folder}/slurm/config.yaml"]
    config = load_config(FinetuneConfig, saved, "test").config
    assert (config.task, config.pretrained, config.run_dir) == (
        "cifar10",
        "my runs/b16",
        Path(folder),
    )
    # From configs/finetune/cifar10.yaml, and from the options in front of it.
    assert (config.steps, config.resolution, config.learning_rates) == (10_000, 32, (0.01, 0.03))
    assert record(folder)["jobs"][0]["job_id"] == "102_1"


def test_finetuning_reports_to_where_its_pretraining_does(submit):
    then = ("--then", "finetune", "--tasks", "digits")
    file = ["--config", "my runs/finetune-digits-b16/slurm/config.yaml"]
    submit(*then)  # the tiny run tracks nothing
    assert load_config(FinetuneConfig, file, "test").config.tracking.enabled is False
    uri = "http://mlflow:5000"
    submit(*then, "--tracking.enabled", "--tracking.uri", uri)
    tracking = load_config(FinetuneConfig, file, "test").config.tracking
    assert (tracking.enabled, tracking.uri) == (True, uri)


def test_what_a_job_around_it_set_does_not_reach_the_new_one(submit, monkeypatch, tmp_path):
    for name in ("SLURM_MEM_PER_CPU", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    played = {"sbatch": f"env | grep ^SLURM_ > {tmp_path}/seen; echo 5"}
    monkeypatch.setenv("PATH", path_with(play(tmp_path / "other", played)))
    submit()
    assert (tmp_path / "seen").read_text() == "SLURM_CONF=x\n"


def test_a_sweep_is_one_array_and_each_run_has_its_own_finetuning(submit):
    asked = submit(
        "--array", "seed=0-1", "optim.lr=0.001", "--array-limit", "1",
        "--then", "finetune", "--tasks", "digits",
    )  # fmt: skip
    assert "--array=0-1%1" in Path("my runs/b16/slurm/pretrain.sbatch").read_text()
    assert [line.split()[1] for line in asked[1:]] == [
        "--dependency=afterok:101_0",
        "--dependency=afterok:101_1",
    ]
    folder = "my runs/b16/b16-seed1-lr0.001"
    config = load_config(PretrainConfig, ["--config", f"{folder}/slurm/config.yaml"], "test").config
    assert (config.seed, config.optim.lr, config.run_dir) == (1, 0.001, Path(folder))
    assert record(folder)["jobs"][0]["job_id"] == "101_1"
    assert Path("my runs/b16/finetune-digits-b16-seed1-lr0.001/slurm/config.yaml").is_file()


def test_dry_run_shows_scripts_and_problems_and_writes_nothing(submit, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    missing = ("--data.train", "/nowhere", "--then", "finetune", "--tasks", "digits")
    assert submit("--dry-run", *missing) == []
    told = capsys.readouterr()
    assert told.out.count("#!/bin/bash") == 2 and "--array=0-0" in told.out
    assert "would be refused: data: /nowhere does not exist" in told.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_machine_without_slurm_is_told_so_and_can_still_show(submit, monkeypatch, tmp_path):
    git_state()  # asked while there is a git, because the answer is kept for the whole process
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(RefusedInput, match=r"no sbatch.*--dry-run"):
        submit()
    submit("--dry-run")


def test_an_sbatch_that_gives_no_id_is_told(submit, monkeypatch, tmp_path):
    played = path_with(play(tmp_path / "other", {"sbatch": "echo queued, probably"}))
    monkeypatch.setenv("PATH", played)
    with pytest.raises(RefusedInput, match=r"gave no job id .*queued, probably.*squeue"):
        submit()


def test_what_slurm_refuses_is_told_and_what_is_queued_already(submit, monkeypatch, tmp_path):
    played = {
        "sbatch": 'case "$*" in *finetune*) echo "no such account" >&2; exit 1;; esac; echo 5'
    }
    monkeypatch.setenv("PATH", path_with(play(tmp_path / "other", played)))
    then = ("--then", "finetune", "--tasks", "digits")
    with pytest.raises(RefusedInput, match=r"(?s)no such account.*Job 5 .*scancel 5"):
        submit(*then)
    assert record("my runs/b16")["jobs"][0]["job_id"] == "5"

    play(tmp_path / "other", {"squeue": "echo 'RUNNING b16'"})
    with pytest.raises(RefusedInput, match="submitted as job 5, which is running"):
        submit()
    play(tmp_path / "other", {"squeue": "echo 'RUNNING another cluster'"})
    submit()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--time", "soon"], "soon: give minutes"),
        (["--time", "0"], "0: give minutes"),
        (["--nodes", "0"], "at least 1"),
        (["--node", "2"], "unknown option --node; did you mean --nodes?"),
        (["--seeed", "2"], "unknown option --seeed"),
        (["--model.sise", "b"], "--model.size"),
        (["--gpus-per-node", "8", "--ranks-per-node", "4"], "one rank for each GPU"),
        (["--then", "finetune"], "go together"),
        (["--tasks", "pets"], "go together"),
        (["--then", "finetune", "--tasks", "pet"], "--tasks pet: there is no such task"),
        (["--then", "finetune", "--tasks", "pets,pets"], "each task once"),
        (["--then", "finetune", "--tasks", "pets", "--finetune-options", "--step 1"], "--step"),
        (["--then", "finetune", "--tasks", "pets", "--finetune-options", "--run-dir x"], "is set"),
        (["--tracking.enabled", "--tracking.uri", "http://me:secret@host"], "MLFLOW_TRACKING_"),
        (["--skip", "disc"], "the checks are queue, paths"),
        (["--array", "seed"], "cannot be read"),
        (["--array", "seed=1,1"], "give each value once"),
        (["--array", "sede=1"], "unknown option --sede"),
        (["--array", "run-dir=a,b"], "give OPTION=V1,V2"),
        (["--site", "none.yaml"], "--site none.yaml: there is no such file"),
        (["--site", "wrong.yaml"], "wrong.yaml:1: unknown key partitions; did you mean partition?"),
    ],
)
def test_refused_with_exit_code_2_and_what_to_do(words, told, submit, monkeypatch, capsys):
    Path("wrong.yaml").write_text("partitions: gpu\n")
    argv = "submit --config tiny.yaml --nodes 2 --gpus-per-node 0 --time 60 --dry-run".split()
    monkeypatch.setattr(sys, "argv", [*argv, *words])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_command_line_goes_before_the_site_file(submit, monkeypatch, capsys):
    Path("site.yaml").write_text("partition: slow\naccount: vision\nsignal_seconds: 60\n")
    monkeypatch.setenv("VITRAIN_SITE", "site.yaml")
    submit("--dry-run", "--partition", "fast")
    script = capsys.readouterr().out
    for line in ("--partition=fast", "--account=vision", "--signal=USR1@60"):
        assert f"#SBATCH {line}\n" in script


def test_the_example_site_file_has_every_key_and_is_one():
    example = ROOT / "launch" / "site.example.yaml"
    assert read_site(example) == SiteConfig()
    lines = example.read_text().splitlines()
    starts = ("#  ", *(f"#{key}:" for key in SiteConfig.model_fields))
    values = yaml.safe_load("\n".join(line[1:] for line in lines if line.startswith(starts)))
    assert list(values) == list(SiteConfig.model_fields)
    SiteConfig.model_validate(values)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("environment: {A-B: 1}", "A-B: is not the name of a variable"),
        ("sbatch: [constraint=h100]", "give an option of sbatch"),
        ("setup: module load cuda", "setup = 'module load cuda'"),
        ("max_restarts: many", "max_restarts = 'many'"),
    ],
)
def test_wrong_values_of_a_site_file_are_named(content, told, tmp_path):
    (tmp_path / "site.yaml").write_text(content)
    with pytest.raises(RefusedInput, match=told):
        read_site(tmp_path / "site.yaml")


def test_time_limits_as_slurm_writes_them():
    seconds = {"5": 300, "1:30": 90, "24:00:00": 86_400, "2-00": 172_800, "1-2:03:04": 93_784}
    assert {text: time_seconds(text) for text in seconds} == seconds


def test_sets_of_options(tmp_path):
    pair = members(["seed=0,1", "--augment.crop=area"])
    assert [member.label for member in pair] == ["seed0-croparea", "seed1-croparea"]
    assert pair[1].words == ("--seed", "1", "--augment.crop", "area")
    file = tmp_path / "runs.txt"
    file.write_text("--seed 1 --optim.lr 1e-3  # a try\n\n--data.train '/a b'\n")
    assert [member.words for member in members([str(file)])] == [
        ("--seed", "1", "--optim.lr", "1e-3"),
        ("--data.train", "/a b"),
    ]


def test_help_needs_no_torch():
    program = (
        "import sys, runpy; sys.argv = ['submit', '--help']\n"
        "try: runpy.run_module('launch.submit', run_name='__main__', alter_sys=False)\n"
        "except SystemExit as end: print('code', end.code)\n"
        "print('imported', sorted({'torch', 'deepspeed', 'timm', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "code 0" in done.stdout and "imported []" in done.stdout, done.stderr
    assert "--then {finetune}" in done.stdout
