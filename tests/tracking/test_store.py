import os
import shlex
import shutil
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from tracking.store import (
    DEFAULT_URI,
    ENVIRONMENT,
    artifact_location,
    patient_requests,
    prepare_environment,
    process_wide_store,
    sqlite_path,
    tracking_uri,
    ui_command,
)


def test_the_config_comes_before_the_environment_before_the_default(monkeypatch):
    assert tracking_uri(None) == DEFAULT_URI
    assert sqlite_path(DEFAULT_URI).is_absolute()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000")
    assert tracking_uri(None) == "http://from-environment:5000"
    assert tracking_uri("https://from-config") == "https://from-config"


def test_relative_databases_become_absolute(tmp_path):
    assert tracking_uri("sqlite:///sub/x.db") == f"sqlite:///{tmp_path}/sub/x.db"
    assert (tmp_path / "sub").is_dir()


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://db.example/mlflow",
        "mysql+pymysql://db.example/mlflow",
        "databricks",
        "databricks://profile",
        "https://host/prefix",
    ],
)
def test_other_stores_are_passed_on(uri):
    assert tracking_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file:///tmp/mlruns", "file store is gone"),
        ("mlruns", "file store is gone"),
        ("ftp://host", "ftp://host"),
        ("http://", "names no host"),
        ("sqlite://", "memory"),
        ("sqlite:///:memory:", "memory"),
        ("sqlite:////proc/nowhere/x.db", "cannot be made"),
        ("http://ann:secret@host:5000", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_what_can_never_work_is_refused_with_the_value_and_the_way_out(uri, words):
    with pytest.raises(RefusedInput, match=r"tracking\.uri = ") as refused:
        tracking_uri(uri)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_folder_in_the_place_of_the_database_is_refused(tmp_path):
    with pytest.raises(RefusedInput, match="cannot be written"):
        tracking_uri(f"sqlite:///{tmp_path}")


def test_the_message_names_the_environment_where_it_came_from_there(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/x")
    with pytest.raises(RefusedInput, match="MLFLOW_TRACKING_URI = file:///tmp/x"):
        tracking_uri(None)


def test_artifacts_lie_beside_a_database_and_where_a_server_decides():
    assert artifact_location("http://host", "e") is None
    assert artifact_location("sqlite:////data/mlflow.db", "a/b") == "file:///data/artifacts/a_b"
    assert artifact_location("postgresql://db/x", "e").endswith("/mlruns/artifacts/e")


def test_mlflows_switches_are_defaults_that_people_can_change(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    prepare_environment()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    with patient_requests(), process_wide_store("http://host"):
        assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) >= 120
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://host"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_ui_command_can_be_pasted(tmp_path):
    command = shlex.split(ui_command(f"sqlite:///{tmp_path}/my store/x.db"))
    assert shutil.which(command[0]), command
    assert Path(command[0]).name == "mlflow"
    assert command[1:] == ["ui", "--backend-store-uri", f"sqlite:///{tmp_path}/my store/x.db"]
    assert "http://host:5000" in ui_command("http://host:5000")
