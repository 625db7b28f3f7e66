import subprocess
import sys

import pytest

from configs.errors import RefusedInput
from tracking.provenance import REPOSITORY_ROOT
from tracking.record import RunRecord
from tracking.sync import main, run_uri


@pytest.fixture
def unsent(begin, tmp_path):
    run = begin("unsent", settings={"enabled": False})
    run.log_metrics(1, {"train/loss": 1.0})
    run.close()
    return tmp_path / "unsent"


def test_what_is_left_is_sent_and_the_second_time_there_is_nothing(
    unsent, store_uri, client, capsys
):
    assert main([str(unsent), "--uri", store_uri]) == 0
    assert "sent 1 metric rows and 2 other records" in capsys.readouterr().out
    run = client.get_run(RunRecord.load(unsent / "tracking.json").run_id)
    assert run.data.metrics == {"train/loss": 1.0}
    assert main([str(unsent)]) == 0
    assert f"{store_uri} has everything already" in capsys.readouterr().out


@pytest.mark.timeout(60)
def test_a_server_that_is_down_means_exit_code_1_and_the_number_left(unsent, capsys):
    assert main([str(unsent), "--uri", "http://127.0.0.1:9", "--timeout-seconds", "3"]) == 1
    said = capsys.readouterr().out
    assert "1 and 2 are left" in said
    assert "127.0.0.1" in said


def test_a_folder_that_is_no_run_is_exit_code_2_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tracking.sync", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY_ROOT,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr


def test_the_recorded_store_is_used_with_credentials_from_the_environment(unsent, monkeypatch):
    record = RunRecord.load(unsent / "tracking.json")
    record.uri = "http://host:5000"
    record.save(unsent / "tracking.json")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert run_uri(unsent, None) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pw@host:5000")
    assert run_uri(unsent, None) == "http://ann:pw@host:5000"
    assert run_uri(unsent, "http://new:1") == "http://new:1"
    with pytest.raises(RefusedInput, match="file:///x"):
        run_uri(unsent, "file:///x")
