import json
import math
import subprocess
import sys
import time

import pytest

from configs.errors import RefusedInput
from configs.groups import TrackingConfig
from tracking.journal import read_rows
from tracking.provenance import REPOSITORY_ROOT
from tracking.run import check_settings, start_run


def history(client, run, name):
    return [(m.step, m.value) for m in client.get_metric_history(run.run_id, name)]


def journal_of(run_dir):
    return [(row["step"], row["values"]) for row, _ in read_rows(run_dir / "metrics.jsonl")]


def test_a_run_is_stored_with_all_it_was_told(begin, client, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.yaml").write_text("stage: pretrain\n")
    (tmp_path / "plot.png").write_bytes(b"png")
    run = begin("whole", params={"optim.lr": 0.1, "note": "x" * 9000}, tags={"recipe": "r1"})
    run.log_metrics(1, {"train/loss": 2.0, "train/lr": float("nan")})
    run.log_metrics(2, {"train/loss": float("inf")})
    run.log_dataset("fractals", "d" * 64, "train")
    run.log_artifact(tmp_path / "plot.png", "plots")
    run.set_tags({"later": "yes"})
    assert run.close() is True

    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "whole"
    assert client.get_experiment(stored.info.experiment_id).name == "vitrain-pretrain"
    assert stored.data.params["optim.lr"] == "0.1"
    assert len(stored.data.params["note"]) == 6000
    tags = stored.data.tags
    assert (tags["stage"], tags["recipe"], tags["later"]) == ("pretrain", "r1", "yes")
    assert tags["commit"] and tags["version.torch"] and tags["host"] and tags["command"]
    assert [step for step, _ in history(client, run, "train/loss")] == [1, 2]
    assert math.isnan(history(client, run, "train/lr")[0][1])
    (data,) = stored.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("fractals", "d" * 36)
    assert data.tags[0].value == "train"
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"config.yaml", "plots"}
    assert list(tmp_path.glob("ml*")) == [], "MLflow made a store in the current directory"


def test_every_rank_but_the_main_one_does_nothing(tmp_path):
    settings = TrackingConfig(uri="file:///nowhere")
    run = start_run(tmp_path / "r", settings, stage="pretrain", params={}, tags={}, is_main=False)
    run.log_metrics(1, {"a": 1.0})
    run.log_weights(tmp_path, register_as="x", metrics={"a": 1.0})
    run.link_transfer({}, "digits", 0.5)
    assert run.run_id is None and run.model_id is None
    assert run.close() is True
    assert not (tmp_path / "r").exists()


def test_disabled_tracking_keeps_the_journals_and_never_imports_mlflow(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from configs.groups import TrackingConfig
        from tracking.run import start_run
        settings = TrackingConfig(enabled=False, uri="file:///not/checked/when/disabled")
        with start_run(Path(sys.argv[1]), settings, stage="pretrain", params={"a": 1}, tags={},
                       is_main=True) as run:
            run.log_metrics(3, {"train/loss": 0.5})
        assert run.run_id is None
        assert not {"mlflow", "torch"} & set(sys.modules), "slow imports"
    """
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "r"], check=True, timeout=60, cwd=REPOSITORY_ROOT
    )
    assert journal_of(tmp_path / "r") == [(3, {"train/loss": 0.5})]
    kinds = [event["kind"] for event, _ in read_rows(tmp_path / "r" / "tracking/events.jsonl")]
    assert kinds == ["create", "close"]


def test_a_dead_server_costs_the_training_loop_nothing(begin, caplog):
    started = time.monotonic()
    # Port 9 (discard) of this host: nobody listens.
    run = begin("dead", settings={"uri": "http://127.0.0.1:9"})
    for step in range(500):
        run.log_metrics(step, {"train/loss": 1.0, "train/lr": 0.1})
    assert time.monotonic() - started < 5
    assert run.close(timeout_seconds=4) is False
    assert time.monotonic() - started < 20
    warnings = [record.getMessage() for record in caplog.records]
    assert sum("does not take the results now" in text for text in warnings) == 1
    assert "500 metric rows" in warnings[-1]
    assert "python -m tracking.sync" in warnings[-1]


def test_a_restart_goes_on_in_the_same_run_and_repeats_no_step(begin, client, tmp_path):
    first = begin("again", params={"optim.lr": 0.1, "schedule.total_steps": 100})
    for step in (10, 20, 30):
        first.log_metrics(step, {"train/loss": 1.0 / step})
    first.log_metrics(20, {"validation/top1": 0.2})
    first.close("KILLED")
    assert client.get_run(first.run_id).info.status == "KILLED"

    second = begin("again", params={"optim.lr": 0.1, "schedule.total_steps": 200})
    assert second.run_id == first.run_id
    for step in (20, 30, 40):
        second.log_metrics(step, {"train/loss": 9.0, "validation/top1": 0.3})
    second.close()

    assert history(client, second, "train/loss") == [(10, 0.1), (20, 0.05), (30, 1 / 30), (40, 9.0)]
    # The validation of step 30 was due but not recorded before the first process ended.
    assert history(client, second, "validation/top1") == [(20, 0.2), (30, 0.3), (40, 0.3)]
    stored = client.get_run(second.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["schedule.total_steps"] == "100"
    assert stored.data.tags["resumed.schedule.total_steps"] == "200"
    assert "resumed.optim.lr" not in stored.data.tags
    assert stored.data.tags["starts"] == "2"
    (record,) = [json.loads((tmp_path / "again" / "tracking.json").read_text())]
    assert record["run_id"] == first.run_id


def test_a_metric_may_come_later_than_others_of_later_steps(begin, client, tmp_path):
    """As a checkpoint does, whose times belong to the step at which it was begun."""
    run = begin("late")
    run.log_metrics(10, {"train/loss": 0.5})
    run.log_metrics(8, {"throughput/save_write_seconds": 2.0})
    run.log_metrics(12, {"train/loss": 0.4})
    assert run.close()
    assert [step for step, _ in journal_of(tmp_path / "late")] == [10, 8, 12]
    assert history(client, run, "throughput/save_write_seconds") == [(8, 2.0)]
    assert history(client, run, "train/loss") == [(10, 0.5), (12, 0.4)]


def test_a_step_recorded_twice_by_one_process_is_named_once(begin, tmp_path, caplog):
    run = begin("twice", settings={"enabled": False})
    for step in (1, 2, 2, 1, 3):
        run.log_metrics(step, {"train/loss": float(step)})
    assert [step for step, _ in journal_of(tmp_path / "twice")] == [1, 2, 3]
    assert len([r for r in caplog.records if "recorded already" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (RuntimeError(), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_the_status_says_how_the_block_was_left(begin, tmp_path, error, status):
    try:
        with begin(settings={"enabled": False}) as run:
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    run.close("FINISHED")
    run.log_metrics(1, {"late": 1.0})
    events = [event for event, _ in read_rows(tmp_path / "run" / "tracking" / "events.jsonl")]
    assert [e["status"] for e in events if e["kind"] == "close"] == [status]
    assert journal_of(tmp_path / "run") == []


def test_settings_that_can_never_work_are_refused_at_once(begin):
    check_settings(TrackingConfig(enabled=False, uri="file:///x"))
    with pytest.raises(RefusedInput, match="file:///x"):
        check_settings(TrackingConfig(uri="file:///x"))
    with pytest.raises(RefusedInput, match="file:///x"):
        begin(settings={"uri": "file:///x"})


def test_a_process_leaves_in_time_and_quietly_while_its_server_hangs(tmp_path):
    code = """if True:
        import socket, sys
        from pathlib import Path
        from configs.groups import TrackingConfig
        from tracking.run import start_run
        # Takes connections and never answers, like a frozen server.
        hung = socket.create_server(("127.0.0.1", 0))
        settings = TrackingConfig(uri=f"http://127.0.0.1:{hung.getsockname()[1]}")
        run = start_run(Path(sys.argv[1]), settings, stage="pretrain", params={}, tags={},
                        is_main=True)
        run.log_metrics(1, {"train/loss": 0.5})
        assert run.close(timeout_seconds=2) is False
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "r"],
        timeout=60,
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("MLflow has not got 1 metric rows and 2 other records")


def test_rows_lost_in_a_power_cut_do_not_hide_the_rows_after_them(begin, client, tmp_path):
    first = begin("cut")
    for step in range(1, 6):
        first.log_metrics(step, {"train/loss": float(step)})
    assert first.close("KILLED")
    journal = tmp_path / "cut" / "metrics.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    second = begin("cut")
    for step in range(3, 8):
        second.log_metrics(step, {"train/loss": float(step)})
    assert second.close()
    assert {step for step, _ in history(client, second, "train/loss")} == set(range(1, 8))
