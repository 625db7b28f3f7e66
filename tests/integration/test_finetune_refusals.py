"""What a person can get wrong: one message, exit code 2, no traceback."""

import os
import subprocess
import sys
import time

import pytest

from tests.integration.finetune_processes import ROOT, SCRIPT, options, run_ranks
from tests.integration.pretrain_processes import read_json

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def refused(arguments: list[str]) -> str:
    ended = run_ranks(1, arguments)
    assert ended.codes == [2], ended.texts
    assert "Traceback" not in ended.texts[0]
    lines = [line for line in ended.texts[0].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return ended.texts[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--task cifar11", "cifar11"),
        ("--learning-rate 0.1", "--learning-rates"),
        ("--steps many", "many"),
        ("--steps 0", "steps"),
        ("--config configs/pretrain/vit_ti4_fractals_demo.yaml", "launch/pretrain.py"),
        ("--config configs/finetune/digit.yaml", "digits.yaml"),
        ("--task digits --pretrained runs/nothing-here", "no such file or folder"),
        ("--task digits --resolution 50", "48 or 52"),
    ],
)
def test_wrong_options_are_refused_at_once(words, told, tmp_path):
    start = time.monotonic()
    assert told in refused([*words.split(), "--run-dir", str(tmp_path / "run")])
    assert time.monotonic() - start < 20  # seconds on an idle machine: about one


@pytest.mark.parametrize("task", ["cifar10", "flowers"])
def test_offline_without_data_tells_what_to_fetch(task, tmp_path):
    arguments = options({"task": task, "data-dir": tmp_path, "run-dir": tmp_path / "run"})
    told = refused(arguments)
    assert "downloading them failed" in told
    assert f"put them into {tmp_path}/" in told.replace("flowers-102/", "")


def test_weights_that_are_none_are_refused(tmp_path):
    junk = tmp_path / "weights.pth"
    junk.write_bytes(b"not a checkpoint")
    told = refused(options({"pretrained": junk, "data-dir": tmp_path, "run-dir": tmp_path / "run"}))
    assert "weights.pth" in told


def test_two_processes_say_a_refusal_once(tmp_path):
    arguments = options({"task": "shards", "data-dir": tmp_path, "run-dir": tmp_path / "run"})
    ended = run_ranks(2, arguments)
    assert ended.codes == [2, 2], ended.texts
    assert "must hold train/ and test/" in ended.texts[0] and "must hold" not in ended.texts[1]


def test_a_used_folder_refuses_other_options_and_a_second_owner(tmp_path):
    run = tmp_path / "run"
    base = {"data-dir": tmp_path, "run-dir": run}
    drive = {"signal": "SIGTERM", "after_step": 3}
    ended = run_ranks(1, options(base), drive=drive)
    assert ended.codes == [85], ended.texts
    assert "seed was 0, now 1" in refused(options({**base, "seed": 1}))
    assert "task was digits, now shards" in refused(options({**base, "task": "shards"}))
    assert "already holds a run" in refused(options({**base, "resume": "never"}))
    assert "has no checkpoint" in refused(options({**base, "run-dir": tmp_path, "resume": "must"}))
    owner = (
        "import sys, time; from pathlib import Path; from training.run_folder import RunFolder\n"
    )
    owner += "with RunFolder(Path(sys.argv[1])).lock(): print('has it', flush=True); time.sleep(99)"
    with subprocess.Popen(
        [sys.executable, "-c", owner, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "has it\n"
            assert f"process {process.pid}" in refused(options(base))
        finally:
            process.kill()
    assert read_json(run / "status.json")["state"] == "saved"


def test_help_answers_fast_with_the_tasks_values(tmp_path):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--task", "pets", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "100"},
        check=False,
    )
    assert done.returncode == 0 and "(default: 500)" in done.stdout
    assert time.monotonic() - start < 15  # under 3 s on an idle machine


def test_nothing_heavy_is_imported_before_options_are_checked():
    code = "import sys, finetune.run; print({'torch', 'numpy', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
