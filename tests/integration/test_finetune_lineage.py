"""Weights go through MLflow by name, and a transfer shows on the page of the model it came from."""

import json

import pytest
from mlflow import MlflowClient

from finetune.transfer import transfer
from tests.finetune.toy_task import forget_accelerate, toy_config, write_image_folder
from tracking import lineage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _accelerate_is_new():
    yield
    forget_accelerate()


def test_a_transfer_from_a_registered_model_is_linked_to_it(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr(lineage, "CACHE_FOLDER", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    data_dir = write_image_folder(tmp_path / "data")

    def run(name: str, **changes) -> dict:
        tracking = {"enabled": True, "uri": uri, **changes.pop("tracking", {})}
        run_dir = tmp_path / name
        config = toy_config(data_dir=data_dir, run_dir=run_dir, tracking=tracking, **changes)
        assert transfer(config) == 0
        return json.loads((run_dir / "result.json").read_text())

    first = run("first", tracking={"register_as": "toy"})
    first_id = json.loads((tmp_path / "first" / "tracking.json").read_text())["run_id"]
    second = run("second", pretrained="models:/toy@newest", resolution=12)
    assert second["pretrained"]["reference"] == "models:/toy@newest"
    assert second["pretrained"]["pretrain.run_id"] == first_id

    client = MlflowClient(uri)
    second_id = json.loads((tmp_path / "second" / "tracking.json").read_text())["run_id"]
    tracked = client.get_run(second_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test/top1"] == second["test"]["top1"]
    assert tracked.data.tags["pretrain.run_id"] == first_id
    assert tracked.data.params["task"] == "image-folder"
    model_id = tracked.data.tags["pretrain.model_id"]
    model = client.get_logged_model(model_id)
    linked = {metric.key: metric.value for metric in model.metrics}
    assert linked["transfer/image-folder/top1"] == second["test"]["top1"]
    assert linked["test/top1"] == first["test"]["top1"]
    plots = {artifact.path for artifact in client.list_artifacts(second_id, "plots")}
    assert plots == {"plots/confusion.png", "plots/curves.png"}
