"""`benchmarks/on_gpu.sh`: which commands it runs, what it leaves, when it stops."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_pretrain

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
PARTS = "pretrain memory profile real loader stages overhead augment variants".split()
# Stands where python does: notes its arguments, and does what the test says.
PYTHON = """#!/bin/sh
{{ for word in "$@"; do printf '%s\\t' "$word"; done; echo; }} >> {record}
{action}
"""


@pytest.fixture
def on_gpu(tmp_path):
    """Runs the script with a stand-in for python; gives the result and the commands."""

    def run(*words: str, action: str = "true"):
        python = tmp_path / "bin" / "python"
        python.parent.mkdir(exist_ok=True)
        record = tmp_path / "commands"
        python.write_text(PYTHON.format(record=record, action=action))
        python.chmod(0o755)
        done = subprocess.run(
            [str(SCRIPT), *words],
            env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        text = record.read_text() if record.exists() else ""
        commands = [line.split("\t")[:-1] for line in text.splitlines() if line.startswith("bench")]
        return done, commands

    return run


def test_all_parts_run_and_their_options_exist(on_gpu, tmp_path):
    done, commands = on_gpu(str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    ran = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert [name for name in ran if name != "shards"] == PARTS
    assert {path.stem for path in (tmp_path / "out").glob("*.log")} >= set(PARTS)
    for name, (script, *words) in zip(PARTS, commands, strict=True):
        assert words[:2] == ["--json", str(tmp_path / "out" / f"{name}.json")]
        if script == "benchmarks/gpu_pretrain.py":
            assert gpu_pretrain.cases_of(gpu_pretrain.parse(words))
        source = (ROOT / script).read_text()
        for word in words:
            assert not word.startswith("--") or f'"{word}"' in source, (script, word)


def test_some_parts_alone(on_gpu, tmp_path):
    done, commands = on_gpu(str(tmp_path / "out"), "memory", "real")
    assert done.returncode == 0
    assert [command[0] for command in commands] == [
        "benchmarks/gpu_memory.py",
        "benchmarks/gpu_pretrain.py",
    ]


def test_a_part_that_fails_stops_no_other_and_is_told(on_gpu, tmp_path):
    action = 'case "$1" in *gpu_memory*) echo no memory; exit 3 ;; esac'
    done, commands = on_gpu(str(tmp_path / "out"), action=action)
    assert done.returncode == 1 and len(commands) == len(PARTS)
    assert "memory: failed with 3" in done.stdout
    assert (tmp_path / "out" / "memory.log").read_text() == "no memory\n"


def test_nothing_starts_once_the_time_is_up(on_gpu, tmp_path):
    done, commands = on_gpu("--minutes", "0", str(tmp_path / "out"))
    assert done.returncode == 1 and commands == []
    assert "variants: not started, the time is up" in done.stdout


def test_the_toy_takes_what_has_one(on_gpu, tmp_path):
    done, commands = on_gpu("--toy", str(tmp_path / "out"))
    assert done.returncode == 0
    assert [command[0] for command in commands] == [
        "benchmarks/gpu_pretrain.py",
        "benchmarks/gpu_memory.py",
    ]
    assert all("--toy" in command for command in commands)


def test_it_explains_itself(on_gpu):
    done, commands = on_gpu("--help")
    assert done.returncode == 0 and commands == [] and "PART" in done.stdout
    done, _ = on_gpu("--what")
    assert done.returncode == 2


def test_shellcheck_finds_nothing_wrong():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck is not None, "a development dependency"
    done = subprocess.run(
        [shellcheck, str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
