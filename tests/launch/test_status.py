"""What `python -m launch.status` says of run folders, whole, torn and damaged."""

import json
from datetime import datetime

import pytest

from configs.errors import RefusedInput
from launch.status import describe, main
from training.run_folder import RunFolder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A running run of 1000 steps under runs/, two seconds a step, ended inside a line."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "b16"
    folder.mkdir(parents=True)
    status = {"total_steps": 1000, "resumed_from_steps": [50, 80]}
    RunFolder(folder).write_status("running", 200, **status)
    rows = [
        {"time": 1000 * (10 + 2 * step), "step": step, "values": {"train/loss": 7 - step / 100}}
        for step in (100, 150, 200)
    ]
    # An hour went by before the last process took over at step 80.
    rows.insert(0, {"time": -3_600_000, "step": 50, "values": {"train/loss": 7.0}})
    lines = [json.dumps(row) for row in rows] + ['{"damaged', '{"time": 9, "step": 250, "val']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def told(folder):
    return describe(folder, datetime.now().astimezone())


def test_a_running_run(run):
    found = told(run)
    assert (found["state"], found["step"], found["total_steps"]) == ("running", 200, 1000)
    assert found["seconds_left"] == pytest.approx(800 * 2)
    assert (found["loss"], found["restarts"], found["error"]) == (5.0, 2, None)
    assert 0 <= found["seconds_since_update"] < 60


def test_a_failed_run_tells_why(run, capsys):
    RunFolder(run).write_status("failed", 210, total_steps=1000, reason="OSError: disk full")
    found = told(run)
    assert (found["error"], found["seconds_left"]) == ("OSError: disk full", None)
    assert main([str(run)]) == 0
    assert "  OSError: disk full" in capsys.readouterr().out


def test_all_runs_are_found_and_one_without_metrics_too(run, capsys):
    young = run.parent / "young"
    young.mkdir()
    RunFolder(young).write_status("running", 0, total_steps=10)
    (run.parent / "notes").mkdir()
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in found] == ["runs/b16", "runs/young"]
    assert (found[1]["loss"], found[1]["seconds_left"]) == (None, None)
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "200/1000" in text and "27 min" in text


def test_a_loss_that_is_not_finite_and_a_damaged_status(run, capsys):
    row = {"time": 1, "step": 300, "values": {"train/loss": "nan"}}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "status.json").write_text("{torn")
    assert main([str(run)]) == 0
    text = capsys.readouterr().out
    assert "unknown" in text and "nan" in text


def test_runs_in_the_queue_and_runs_of_a_sweep(run, capsys):
    waiting = run.parent / "sweep" / "sweep-seed0"
    (waiting / "slurm").mkdir(parents=True)
    record = {"time": datetime.now().astimezone().isoformat()}
    (waiting / "slurm" / "submission.json").write_text(json.dumps(record))
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in found] == ["runs/b16", "runs/sweep/sweep-seed0"]
    assert found[1]["state"] == "submitted" and 0 <= found[1]["seconds_since_update"] < 60
    RunFolder(waiting).write_status("failed", 3, error="as finetuning tells it")
    assert main([str(waiting)]) == 0
    text = capsys.readouterr().out
    assert "failed" in text and "  as finetuning tells it" in text


def test_what_is_no_run_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(RefusedInput, match=r"holds no status\.json"):
        main([str(tmp_path)])
    monkeypatch.chdir(run)
    with pytest.raises(RefusedInput, match="holds no run"):
        main([])
