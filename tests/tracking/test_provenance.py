import shlex
import subprocess
import sys

import pytest

from tracking import provenance
from tracking.provenance import command_line, environment_record, git_state, redact, run_tags


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://ann:pw@host:5000/x", "http://host:5000/x"),
        ("http://ann:p@ss@host:5000", "http://host:5000"),
        ("postgresql://ann@db/mlflow", "postgresql://db/mlflow"),
        ("mssql://db/x?user=a&password=pw&driver=d", "mssql://db/x?user=a&password=***&driver=d"),
        ("failed for https://a:b@h/ and http://c:d@g/", "failed for https://h/ and http://g/"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("plain text, me@example.org", "plain text, me@example.org"),
    ],
)
def test_redact_takes_credentials_out_and_nothing_else(text, clean):
    assert redact(text) == clean


def test_the_command_can_be_pasted_and_shows_no_password(monkeypatch):
    argv = ["/usr/bin/python3", "-m", "x", "--tracking.uri", "http://a:secret@h", "two words"]
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert shlex.split(command_line()) == ["python", *argv[1:4], "http://h", "two words"]


def test_git_state_is_that_of_the_checkout():
    root = provenance.REPOSITORY_ROOT
    done = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=30
    )
    if done.returncode:
        pytest.skip("the tests do not run in a git checkout")
    git_state.cache_clear()
    assert git_state()[0] == done.stdout.strip()


def test_without_git_the_commit_is_unknown(monkeypatch):
    git_state.cache_clear()
    monkeypatch.setattr(provenance, "_git", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    try:
        assert git_state() == ("unknown", None)
        assert run_tags()["dirty"] == "unknown"
    finally:
        git_state.cache_clear()


def test_the_environment_is_recorded_with_its_slurm_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("WORLD_SIZE", "8")
    record = environment_record()
    assert record["slurm"]["SLURM_JOB_ID"] == "4711"
    assert record["world_size"] == 8
    assert record["versions"]["torch"]
    tags = run_tags()
    assert tags["slurm.job_id"] == "4711"
    assert tags["version.torch"] == record["versions"]["torch"]
    assert all(isinstance(value, str) for value in tags.values())
