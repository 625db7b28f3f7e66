"""The architecture holds: import rules, entry scripts, names, and no path of one machine."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "configs",
    "data_pipeline",
    "models",
    "training",
    "tracking",
    "pretrain",
    "finetune",
    "launch",
)
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
VAGUE_NAMES = {"utils", "common", "helpers", "misc", "base", "manager"}
WALLS = {
    "deepspeed": {"pretrain", "launch"},
    "accelerate": {"finetune"},
    "mlflow": {"tracking"},
    "webdataset": {"data_pipeline"},
    "timm": {"models", "data_pipeline"},
}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_import_linter_finds_no_broken_contract():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts:" in done.stdout


@pytest.mark.parametrize("library", WALLS)
def test_each_library_stays_behind_its_wall(library):
    # Imports inside functions count too: import-linter sees them, this says which file.
    users = {p.relative_to(ROOT).parts[0] for p in SOURCES if library in imported_names(p)}
    assert users <= WALLS[library]


@pytest.mark.parametrize("package", PACKAGES)
def test_our_packages_are_the_ones_imported(package):
    assert Path(importlib.import_module(package).__file__) == ROOT / package / "__init__.py"


def test_no_module_has_a_vague_name_or_a_librarys():
    names = {p.stem for p in SOURCES}
    assert not names & VAGUE_NAMES
    assert not names & set(WALLS)


@pytest.mark.parametrize("script", ["launch/pretrain.py", "finetune/run.py"])
def test_entry_scripts_answer_help_from_another_folder(script, tmp_path):
    # `python launch/pretrain.py` puts launch/ first on sys.path, where `pretrain` is the script.
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "--run-dir" in done.stdout


def test_no_tracked_file_names_a_home_or_temporary_folder():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(/home/\w+|/root|/Users/\w+)/")
    found = [
        name
        for name in done.stdout.split()
        if (ROOT / name).is_file()
        and name != "tests/test_layout.py"
        and pattern.search((ROOT / name).read_text(errors="ignore"))
    ]
    assert found == []
