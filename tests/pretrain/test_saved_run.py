"""Looking into run folders, and weights out of checkpoints."""

import shutil
import subprocess
import sys

import pytest
import torch

from configs.errors import RefusedInput
from models.weights import load_weights
from pretrain import loop
from pretrain.saved_run import serve
from tests.integration.pretrain_processes import ROOT, SCRIPT, read_json
from training.run_folder import RunFolder


@pytest.fixture
def run_dir(plan_of, one_rank):
    """A finished run of 8 steps, with the checkpoints of steps 4 and 8."""
    plan = plan_of(
        {"schedule.total-steps": 8, "data.val": None, "precision": "bf16", "optim.ema-decay": 0.9}
    )
    assert loop.pretrain(plan) == 0
    return plan.run_dir


def test_a_run_is_inspected_from_the_command_line(run_dir):
    (run_dir / "checkpoints" / "tmp-step-00000009").mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--inspect", str(run_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{run_dir}: finished (step 8,")
    by_name = {line.split()[0]: line for line in lines[1:]}
    assert "does not count" in by_name["tmp-step-00000009"]
    assert "complete, " in by_name["step-00000008"] and "in 2 files" in by_name["step-00000008"]
    assert "1 ranks, ZeRO 1, bf16, 128 images seen" in by_name["step-00000008"]
    assert by_name["export/"].endswith("weights of step 8")


def test_damage_is_named(run_dir):
    path = run_dir / "checkpoints" / "step-00000004" / "state-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    answer = serve(["--inspect", str(run_dir)])
    assert answer is not None
    (line,) = [line for line in answer.splitlines() if line.startswith("step-00000004")]
    assert "does not count: state-00000.safetensors has" in line


def test_weights_out_of_a_checkpoint_are_those_of_the_run(run_dir):
    folders = [run_dir / "export", run_dir / "export-ema"]
    before = [load_weights(folder) for folder in folders]
    for folder in folders:
        shutil.rmtree(folder)
    answer = serve(["--export-only", str(run_dir)])
    assert answer is not None and answer.count("weights of step 8") == 2
    for folder, expected in zip(folders, before, strict=True):
        exported = load_weights(folder)
        assert exported.state_dict.keys() == expected.state_dict.keys()
        for name, weight in exported.state_dict.items():
            assert torch.equal(weight, expected.state_dict[name]), name
        assert exported.card == expected.card
    assert read_json(run_dir / "result.json")["weights_sha256"] in answer


def test_the_newest_that_is_whole_is_exported(run_dir):
    (run_dir / "checkpoints" / "step-00000008" / "state-00000.safetensors").unlink()
    answer = serve(["--export-only", str(run_dir)])
    assert answer is not None and "weights of step 4" in answer


def test_what_cannot_be_is_refused(run_dir, tmp_path):
    for words in (["--inspect"], ["--inspect", "a", "b"], ["--seed", "--export-only"]):
        with pytest.raises(RefusedInput, match="takes one run folder"):
            serve(words)
    with pytest.raises(RefusedInput, match="is no run folder"):
        serve(["--inspect", str(tmp_path / "nothing")])
    with RunFolder(run_dir).lock(), pytest.raises(RefusedInput, match="in use by process"):
        serve(["--export-only", str(run_dir)])
    for path in (run_dir / "checkpoints").glob("step-*/marker.json"):
        path.unlink()
    with pytest.raises(RefusedInput, match="no complete checkpoint"):
        serve(["--export-only", str(run_dir)])
    assert serve(["--seed", "1"]) is None
