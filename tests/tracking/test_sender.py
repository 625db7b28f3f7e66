import json
import logging
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock

from tracking.record import RunRecord, Sent, TrackingFiles
from tracking.sender import BackgroundSender, Sender


@pytest.fixture
def offline(begin, tmp_path, weights):
    """A run folder of which nothing was sent: what an outage leaves behind."""

    def make(name="offline", **options) -> TrackingFiles:
        run = begin(name, settings={"enabled": False}, **options)
        for step in range(1, 6):
            run.log_metrics(step, {"train/loss": 1.0 / step})
        run.log_dataset("digits", "d1", "train")
        run.log_artifact(weights / "model.json", "plots")
        run.log_weights(weights, register_as=f"vit-{name}", metrics={"train/loss": 0.2, "best": 1})
        run.link_transfer({}, "digits", 0.75)
        run.close()
        return TrackingFiles(tmp_path / name)

    return make


def run_id(files):
    return RunRecord.load(files.record).run_id


def stored(client, files):
    """Everything MLflow has of a run, in a form that two states of it can be compared by."""
    run = client.get_run(run_id(files))
    models = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    return {
        "status": run.info.status,
        "end_time": run.info.end_time,
        "tags": run.data.tags,
        "history": {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        },
        "datasets": [item.dataset.name for item in run.inputs.dataset_inputs],
        "models": [
            (m.model_id, str(m.status), sorted((x.key, x.value) for x in m.metrics), m.params)
            for m in models
        ],
        "versions": [
            # A search does not fill in the aliases.
            (v.version, v.source, client.get_model_version(v.name, v.version).aliases)
            for v in client.search_model_versions(f"run_id = '{run.info.run_id}'")
        ],
    }


def test_the_rest_is_sent_in_order_and_completely(offline, client, store_uri):
    files = offline()
    sender = Sender(files.run_dir, store_uri)
    assert sender.remaining() == (5, 6)
    sender.send()
    assert sender.remaining() == (0, 0)
    found = stored(client, files)
    assert found["status"] == "FINISHED"
    assert found["history"]["train/loss"] == [(step, 1.0 / step) for step in range(1, 6)]
    assert found["history"]["transfer/digits/top1"] == [(0, 0.75)]
    ((model_id, status, metrics, params),) = found["models"]
    assert (status, params) == ("READY", {"depth": "3", "width": "192"})
    assert metrics == [("best", 1.0), ("train/loss", 0.2)]
    assert found["tags"]["pretrain.model_id"] == model_id == RunRecord.load(files.record).model_id
    assert found["versions"] == [(1, f"models:/{model_id}", ["newest"])]
    paths = [file.path for file in client.list_artifacts(run_id(files), "plots")]
    assert paths == ["plots/model.json"]


def test_sending_everything_once_more_changes_nothing(offline, client, store_uri):
    files = offline("replayed")
    Sender(files.run_dir, store_uri).send()
    before = stored(client, files)
    Sent().save(files.sent)
    again = Sender(files.run_dir, store_uri)
    again.send()
    assert again.remaining() == (0, 0)
    assert stored(client, files) == before


def test_a_lost_tracking_file_leads_back_to_the_same_run(offline, client, store_uri):
    files = offline("lost")
    Sender(files.run_dir, store_uri).send()
    before = stored(client, files)
    record = RunRecord.load(files.record)
    known = record.run_id
    # Killed between MLflow's answer and our own note of it.
    record.run_id = record.model_id = None
    record.save(files.record)
    Sent(events=files.events.stat().st_size - 1, metrics=3).save(files.sent)
    sender = Sender(files.run_dir, store_uri)
    sender.send()
    assert run_id(files) == known
    assert stored(client, files) == before


@pytest.mark.parametrize("kind", ["create", "weights", "transfer", "close"])
def test_a_failure_at_any_event_is_made_good_by_the_next_try(
    offline, client, store_uri, kind, monkeypatch
):
    from tracking.events import APPLY

    files = offline(f"fails-{kind}")
    with monkeypatch.context() as patch:

        def apply_then_lose_the_connection(target, event, real=APPLY[kind]):
            real(target, event)
            raise ConnectionError("gone after the server had done it")

        patch.setitem(APPLY, kind, apply_then_lose_the_connection)
        with pytest.raises(ConnectionError):
            Sender(files.run_dir, store_uri).send()
    sender = Sender(files.run_dir, store_uri)
    sender.send()
    found = stored(client, files)
    assert found["status"] == "FINISHED"
    assert len(found["history"]["train/loss"]) == 5
    assert len(found["models"]) == len(found["versions"]) == 1
    runs = client.search_runs(
        [client.get_run(run_id(files)).info.experiment_id],
        f"attributes.run_name = 'fails-{kind}'",
    )
    assert len(runs) == 1


def test_what_can_never_be_sent_is_left_out_and_said(begin, client, store_uri, tmp_path, caplog):
    run = begin("hopeless", settings={"enabled": False}, params={"odd;key=1": 1})
    run.log_artifact(tmp_path / "gone.png")
    run.log_weights(tmp_path / "gone", register_as="never", metrics={})
    run.log_metrics(1, {"per class/é;x": 1.0})
    run.set_tags({"after": "sent"})
    run._journal("from-a-newer-version")
    run.close()
    files = TrackingFiles(tmp_path / "hopeless")
    files.metrics.write_text('{"step": 0}\n' + files.metrics.read_text())
    sender = Sender(files.run_dir, store_uri)
    sender.send()
    assert sender.remaining() == (0, 0)
    data = client.get_run(run_id(files)).data
    assert data.tags["after"] == "sent"
    assert data.metrics == {"per class/__x": 1.0}
    assert data.params == {"odd_key_1": "1"}
    left_out = [r.getMessage() for r in caplog.records if "was left out" in r.getMessage()]
    assert [text.split()[1] for text in left_out] == ["artifact", "weights", "from-a-newer-version"]


def test_rows_wider_than_a_request_and_many_rows_arrive_whole(begin, client, store_uri, tmp_path):
    run = begin("wide", settings={"enabled": False})
    run.log_metrics(1, {f"class/{number}": number / 1300 for number in range(1300)})
    for step in range(450):
        run.log_metrics(step, {"train/loss": float(step)})
    run.close()
    Sender(tmp_path / "wide", store_uri).send()
    files = TrackingFiles(tmp_path / "wide")
    assert len(client.get_run(run_id(files)).data.metrics) == 1301
    assert len(client.get_metric_history(run_id(files), "train/loss")) == 450


def test_another_store_gets_the_whole_history(offline, client, store_uri, tmp_path):
    files = offline("moved")
    Sender(files.run_dir, store_uri).send()
    old = run_id(files)
    record = RunRecord.load(files.record)
    # As if the server had come back with an empty database.
    record.run_id = "0" * 32
    record.save(files.record)
    client.delete_run(old)
    client._tracking_client.store._hard_delete_run(old)
    with files.metrics.open("a") as journal:
        journal.write('{"time": 9, "step": 6, "values": {"train/loss": 0.1}}\n')
    Sender(files.run_dir, store_uri).send()
    assert run_id(files) not in (old, "0" * 32)
    assert len(stored(client, files)["history"]["train/loss"]) == 6


def test_a_deleted_run_is_not_revived(offline, client, store_uri):
    files = offline("deleted")
    Sender(files.run_dir, store_uri).send()
    client.delete_run(run_id(files))
    Sent(events=Sent.load(files.sent).events).save(files.sent)
    with pytest.raises(RuntimeError, match="mlflow runs restore --run-id"):
        Sender(files.run_dir, store_uri).send()
    client.restore_run(run_id(files))
    Sender(files.run_dir, store_uri).send()


def test_two_senders_never_send_at_once(offline, store_uri):
    files = offline("locked")
    sender = Sender(files.run_dir, store_uri)
    with FileLock(files.lock):
        background = BackgroundSender(sender)
        background.start()
        assert background.finish(timeout_seconds=2) is False
        assert "another process" in background.last_problem
    assert sender.remaining() == (5, 6)


def test_a_locked_database_is_waited_for(offline, client, store_uri, monkeypatch):
    files = offline("busy")
    other = sqlite3.connect(store_uri.removeprefix("sqlite:///"))
    other.execute("BEGIN EXCLUSIVE")
    background = BackgroundSender(Sender(files.run_dir, store_uri))
    background.start()
    background.join(1.5)
    other.rollback()
    other.close()
    assert background.finish(timeout_seconds=60) is True
    assert len(stored(client, files)["history"]["train/loss"]) == 5


def test_credentials_reach_neither_files_nor_logs(begin, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, logger="tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://annalise:hunter2@127.0.0.1:9")
    params = {"tracking.note": "see http://annalise:hunter2@127.0.0.1:9"}
    run = begin("secret", settings={"uri": None}, params=params)
    run.log_metrics(1, {"train/loss": 1.0})
    assert run.close(timeout_seconds=3) is False
    texts = [path.read_text() for path in (tmp_path / "secret").rglob("*") if path.is_file()]
    texts += [record.getMessage() for record in caplog.records]
    assert any("127.0.0.1:9" in text for text in texts)
    assert not [text for text in texts if "hunter2" in text or "annalise" in text]
    record = json.loads(Path(tmp_path / "secret" / "tracking.json").read_text())
    assert record["uri"] == "http://127.0.0.1:9"
