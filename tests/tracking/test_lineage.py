from pathlib import Path

import pytest

from configs.errors import RefusedInput
from tracking.lineage import resolve_weights


@pytest.fixture
def pretrained(begin, weights):
    run = begin("pretrained")
    run.log_metrics(7, {"validation/top1": 0.5})
    run.log_weights(weights, register_as="vit-lineage", metrics={"validation/top1": 0.5})
    assert run.close()
    return run


def test_every_way_to_name_the_weights_leads_to_the_same_files(pretrained, weights, store_uri):
    tags = {"pretrain.run_id": pretrained.run_id, "pretrain.model_id": pretrained.model_id}
    references = [
        f"runs:/{pretrained.run_id}",
        f"models:/{pretrained.model_id}",
        "models:/vit-lineage@newest",
    ]
    for reference in references:
        found = resolve_weights(reference, store_uri)
        assert found.tags == tags, reference
        for name in ("model.safetensors", "model.json"):
            assert (Path(found.path) / name).read_bytes() == (weights / name).read_bytes()
    version = found.tags
    assert resolve_weights("models:/vit-lineage/1", store_uri).tags.keys() == version.keys()


def test_weights_are_downloaded_once(pretrained, store_uri):
    reference = f"runs:/{pretrained.run_id}"
    path = Path(resolve_weights(reference, store_uri).path)
    (path / "model.safetensors").write_bytes(b"kept")
    assert Path(resolve_weights(reference, store_uri).path) == path
    assert (path / "model.safetensors").read_bytes() == b"kept"
    assert sorted(entry.suffix for entry in path.parent.iterdir()) == ["", ".lock"]


def test_a_run_folder_knows_its_ids_without_mlflow(pretrained, tmp_path, store_uri):
    tags = {"pretrain.run_id": pretrained.run_id, "pretrain.model_id": pretrained.model_id}
    folder = tmp_path / "pretrained"
    (folder / "export").mkdir()
    for path in (folder, folder / "export", folder / "export" / "model.safetensors"):
        found = resolve_weights(str(path), "http://127.0.0.1:9")
        assert (found.path, found.tags) == (path, tags)


def test_a_folder_that_was_not_tracked_has_no_ids(begin, tmp_path):
    begin("untracked", settings={"enabled": False}).close()
    found = resolve_weights(str(tmp_path / "untracked"))
    assert (found.path, found.tags) == (tmp_path / "untracked", {})


@pytest.mark.parametrize("reference", ["scratch", "timm:vit_tiny", "/x/w.npz", "nothing/here"])
def test_everything_else_is_given_back_unchanged(reference):
    found = resolve_weights(reference)
    assert (found.path, found.tags) == (reference, {})


def test_a_transfer_shows_on_the_page_of_the_pretrained_model(pretrained, begin, client, store_uri):
    resolved = resolve_weights(f"runs:/{pretrained.run_id}", store_uri)
    run = begin("transfer", stage="finetune", tags=resolved.tags)
    run.link_transfer(resolved.tags, "cifar10", 0.875)
    assert run.close()
    shown = {
        (m.key, m.value, m.run_id) for m in client.get_logged_model(pretrained.model_id).metrics
    }
    assert shown == {
        ("validation/top1", 0.5, pretrained.run_id),
        ("transfer/cifar10/top1", 0.875, run.run_id),
    }
    # The model's own metric is the row the run has already, not a second one.
    assert len(client.get_metric_history(pretrained.run_id, "validation/top1")) == 1
    stored = client.get_run(run.run_id)
    assert client.get_experiment(stored.info.experiment_id).name == "vitrain-finetune"
    assert stored.data.metrics["transfer/cifar10/top1"] == 0.875
    found = client.search_runs(
        [stored.info.experiment_id], f"tags.`pretrain.model_id` = '{pretrained.model_id}'"
    )
    assert [item.info.run_id for item in found] == [run.run_id]


def test_a_model_of_another_store_is_not_linked_but_the_result_is_kept(begin, client, caplog):
    run = begin("foreign", stage="finetune")
    tags = {"pretrain.run_id": "1" * 32, "pretrain.model_id": "m-" + "0" * 32}
    run.link_transfer(tags, "pets", 0.5)
    assert run.close()
    assert client.get_run(run.run_id).data.metrics == {"transfer/pets/top1": 0.5}
    assert client.get_run(run.run_id).data.tags["pretrain.run_id"] == "1" * 32
    assert any("not linked" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("runs:/" + "0" * 32, "has no such thing"),
        ("models:/m-" + "0" * 32, "has no such thing"),
        ("models:/nobody@newest", "has no such thing"),
        ("models:/nobody/3", "has no such thing"),
        ("models:/nobody", "names no version"),
        ("runs:/bad id/../x", "has no such thing"),
    ],
)
def test_what_is_not_there_is_refused_by_name(reference, words, store_uri):
    with pytest.raises(RefusedInput) as refused:
        resolve_weights(reference, store_uri)
    assert words in str(refused.value)
    assert reference in str(refused.value)


def test_a_run_without_weights_is_refused_with_its_status(begin, store_uri):
    run = begin("empty")
    assert run.close("FAILED")
    with pytest.raises(RefusedInput, match=r"'empty' has no weights \(its status is FAILED"):
        resolve_weights(f"runs:/{run.run_id}", store_uri)


def test_a_registered_model_of_other_software_is_refused(client, store_uri, tmp_path):
    client.create_registered_model("foreign-model")
    client.create_model_version("foreign-model", (tmp_path / "x").as_uri())
    with pytest.raises(RefusedInput, match="was not registered by vitrain"):
        resolve_weights("models:/foreign-model/1", store_uri)


@pytest.mark.timeout(60)
def test_a_server_that_is_down_is_said_to_be():
    with pytest.raises(RefusedInput, match=r"http://127\.0\.0\.1:9 cannot be asked"):
        resolve_weights("runs:/" + "0" * 32, "http://127.0.0.1:9")
