"""Tracking against a real `mlflow server` on this host: stopped, late, frozen, killed."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from configs.groups import TrackingConfig
from tracking import lineage
from tracking.journal import read_rows
from tracking.lineage import resolve_weights
from tracking.provenance import REPOSITORY_ROOT
from tracking.run import start_run, ui_command
from tracking.store import open_client
from tracking.sync import main as sync

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# What 200 calls may take together on a busy machine; one request to a frozen server takes longer.
MOST_SECONDS_OF_200_CALLS = 3.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


class Server:
    """An MLflow process in a process group of its own."""

    def __init__(self, command, port, folder):
        self.command = command
        self.port = port
        self.folder = folder
        self.uri = f"http://127.0.0.1:{port}"
        self.process = None

    def start(self):
        if self.process is not None:
            return
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: answers(f"{self.uri}/health"), 90)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def stop(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    options = {
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    command = [mlflow, "server", *(word for option in options.items() for word in option)]
    server = Server(command, port, folder)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(lineage, "CACHE_FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)


def begin(run_dir, uri, stage="pretrain", tags=None):
    settings = TrackingConfig(uri=uri)
    facts = {"params": {"optim.lr": 0.1}, "tags": tags or {}, "is_main": True}
    return start_run(run_dir, settings, stage=stage, **facts)


def log_200(run, first_step):
    """200 metric rows; they must cost a training loop next to nothing, whatever the server does."""
    started = time.monotonic()
    for step in range(first_step, first_step + 200):
        run.log_metrics(step, {"train/loss": 1.0 / (step + 1), "train/lr": step * 1e-5})
    assert time.monotonic() - started < MOST_SECONDS_OF_200_CALLS


def assert_stored(uri, run_id, num_steps):
    client = open_client(uri)
    for name, value_at in (
        ("train/loss", lambda s: 1.0 / (s + 1)),
        ("train/lr", lambda s: s * 1e-5),
    ):
        history = client.get_metric_history(run_id, name)
        assert sorted(m.step for m in history) == list(range(num_steps))
        assert all(m.value == value_at(m.step) for m in history)


def test_nothing_is_lost_when_the_server_is_late_then_frozen_then_restarted(
    server, tmp_path, caplog
):
    server.stop()
    started = time.monotonic()
    run = begin(tmp_path / "run", server.uri)
    log_200(run, 0)
    assert run.run_id is None
    assert time.monotonic() - started < 10
    time.sleep(1)

    server.start()
    wait_until(lambda: run.run_id is not None, 40)
    server.signal(signal.SIGSTOP)
    log_200(run, 200)
    time.sleep(3)
    log_200(run, 400)
    server.signal(signal.SIGCONT)

    server.stop()
    log_200(run, 600)
    server.start()
    assert run.close(timeout_seconds=60) is True
    assert_stored(server.uri, run.run_id, 800)
    client = open_client(server.uri)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    warnings = [r.getMessage() for r in caplog.records if "does not take the results" in r.message]
    assert 1 <= len(warnings) <= 3, "said once an outage, not once a try"


def test_a_frozen_server_does_not_hold_up_the_exit_and_sync_sends_the_rest(
    server, tmp_path, capsys
):
    server.start()
    run = begin(tmp_path / "run", server.uri)
    log_200(run, 0)
    wait_until(lambda: run.run_id is not None, 40)
    server.signal(signal.SIGSTOP)
    try:
        log_200(run, 200)
        started = time.monotonic()
        assert run.close(timeout_seconds=2) is False
        assert time.monotonic() - started < 6
        assert sync([str(tmp_path / "run"), "--timeout-seconds", "2"]) == 1
        assert "are left" in capsys.readouterr().out
    finally:
        server.signal(signal.SIGCONT)
    assert sync([str(tmp_path / "run"), "--timeout-seconds", "60"]) == 0
    assert_stored(server.uri, run.run_id, 400)
    assert open_client(server.uri).get_run(run.run_id).info.status == "FINISHED"


def test_weights_and_lineage_go_through_a_server(server, tmp_path):
    server.start()
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").write_bytes(os.urandom(3_000_000))
    (export / "model.json").write_text(json.dumps({"architecture": {"depth": 12}}))
    run = begin(tmp_path / "pretrain", server.uri)
    run.log_dataset("fractals", "f" * 64, "train")
    run.log_artifact(export / "model.json", "cards")
    run.log_weights(export, register_as="vit-server", metrics={"validation/top1": 0.5})
    assert run.close(timeout_seconds=60)

    resolved = resolve_weights("models:/vit-server@newest", server.uri)
    for name in ("model.safetensors", "model.json"):
        assert (Path(resolved.path) / name).read_bytes() == (export / name).read_bytes()
    assert resolved.tags == {"pretrain.run_id": run.run_id, "pretrain.model_id": run.model_id}
    transfer = begin(tmp_path / "transfer", server.uri, "finetune", resolved.tags)
    transfer.link_transfer(resolved.tags, "digits", 0.75)
    assert transfer.close(timeout_seconds=60)

    client = open_client(server.uri)
    model = client.get_logged_model(run.model_id)
    assert str(model.status) == "READY"
    assert model.params == {"depth": "12"}
    assert json.loads(model.tags["mlflow.modelVersions"])[0]["name"] == "vit-server"
    assert {(m.key, m.value, m.run_id) for m in model.metrics} == {
        ("validation/top1", 0.5, run.run_id),
        ("transfer/digits/top1", 0.75, transfer.run_id),
    }
    stored = client.get_run(run.run_id)
    assert stored.data.tags["pretrain.model_id"] == run.model_id
    assert stored.inputs.dataset_inputs[0].dataset.name == "fractals"
    assert [f.path for f in client.list_artifacts(run.run_id, "cards")] == ["cards/model.json"]


TRAINING = """
import sys, time
from pathlib import Path
from configs.groups import TrackingConfig
from tracking.run import start_run
run_dir, uri, num_steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
run = start_run(run_dir, TrackingConfig(uri=uri), stage="pretrain", params={"a": 1}, tags={},
                is_main=True)
for step in range(num_steps):
    run.log_metrics(step, {"train/loss": 1.0 / (step + 1), "train/lr": step * 1e-5})
    time.sleep(0.002)
sys.exit(0 if run.close(timeout_seconds=90) else 1)
"""


def train(run_dir, uri, num_steps):
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, run_dir, uri, str(num_steps)], cwd=REPOSITORY_ROOT
    )


def test_a_killed_training_goes_on_in_the_same_run_with_every_step_once(server, tmp_path):
    server.start()
    run_dir = tmp_path / "run"
    process = train(run_dir, server.uri, 1_000_000)
    record = run_dir / "tracking.json"
    wait_until(lambda: record.exists() and json.loads(record.read_text())["run_id"], 60)
    process.kill()
    process.wait(timeout=30)
    first = json.loads(record.read_text())["run_id"]
    num_steps = len(list(read_rows(run_dir / "metrics.jsonl"))) + 50
    assert train(run_dir, server.uri, num_steps).wait(timeout=90) == 0
    assert json.loads(record.read_text())["run_id"] == first
    assert_stored(server.uri, first, num_steps)
    assert open_client(server.uri).get_run(first).data.tags["starts"] == "2"


def test_runs_that_start_at_once_share_a_new_sqlite_store(tmp_path):
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    processes = [train(tmp_path / f"run{number}", uri, 20) for number in range(3)]
    assert [process.wait(timeout=100) for process in processes] == [0] * 3
    client = open_client(uri)
    experiment = client.get_experiment_by_name("vitrain-pretrain")
    assert len(client.search_experiments()) == 2  # ours and MLflow's "Default"
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["run0", "run1", "run2"]
    for run in runs:
        assert_stored(uri, run.info.run_id, 20)


def test_the_ui_command_shows_runs_and_their_artifacts(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "plot.png").write_bytes(b"a picture")
    run = begin(tmp_path / "run", uri)
    run.log_artifact(tmp_path / "plot.png", "plots")
    assert run.close(timeout_seconds=60)
    port = free_port()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [*shlex.split(ui_command(uri)), "--port", str(port), "--workers", "1"]
    ui = Server(command, port, elsewhere)
    try:
        ui.start()
        address = f"{ui.uri}/get-artifact?path=plots/plot.png&run_uuid={run.run_id}"
        with urllib.request.urlopen(address, timeout=20) as reply:
            assert reply.read() == b"a picture"
    finally:
        ui.stop()
