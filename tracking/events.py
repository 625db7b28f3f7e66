"""Everything about a run that is not a metric, as events that may be sent twice without harm.

An event is a JSON object in the journal with "kind", "id" (unique) and "time" (ms). A sender that
is killed between MLflow's answer and its own note sends an event again, so each function here first
looks for what an earlier try has left.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking import metric_names
from tracking.record import RunRecord
from tracking.store import artifact_location, patient_requests, process_wide_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)
Event = dict[str, Any]
KEY_TAG = "vitrain.key"
NEWEST_ALIAS = "newest"
PARAMS_PER_CALL = 100
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 5000
MAX_DIGEST_CHARACTERS = 36
MAX_NAME_CHARACTERS = 250
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)


@dataclass
class Target:
    """The MLflow run that events are applied to."""

    client: "MlflowClient"
    uri: str
    record: RunRecord

    @property
    def run_id(self) -> str:
        """The MLflow run's id."""
        assert self.record.run_id is not None, "the create event comes first"
        return self.record.run_id


def clean_name(name: str) -> str:
    """The name of a metric, param or tag with what MLflow refuses in it replaced."""
    return _NOT_IN_NAMES.sub("_", name)[:MAX_NAME_CHARACTERS]


def clip(value: object, limit: int) -> str:
    """The value as text that MLflow accepts, its end cut off with an ellipsis if it is too long."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _chunks(values: dict[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    items = iter(values.items())
    while chunk := list(islice(items, PARAMS_PER_CALL)):
        yield chunk


def _create(target: Target, event: Event) -> None:
    """Find or make the experiment and the run, with its params and tags."""
    client, record = target.client, target.record
    record.experiment_id = _experiment(target, event["experiment"])
    found = client.search_runs([record.experiment_id], f"tags.`{KEY_TAG}` = '{event['id']}'")
    if found:
        run = found[0]
    else:
        run = client.create_run(
            record.experiment_id,
            start_time=event["time"],
            tags={KEY_TAG: event["id"]},
            run_name=event["run_name"],
        )
    record.run_id = run.info.run_id
    _log_params(target, event["params"])
    _set_tags(target, event)


def _log_params(target: Target, values: dict[str, Any]) -> None:
    from mlflow.entities import Param

    for chunk in _chunks(values):
        params = [Param(clean_name(key), clip(value, MAX_PARAM_CHARACTERS)) for key, value in chunk]
        target.client.log_batch(target.run_id, params=params)


def _experiment(target: Target, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = target.client.get_experiment_by_name(name)
    if found is None:
        try:
            return target.client.create_experiment(name, artifact_location(target.uri, name))
        except MlflowException:
            # Another run may have made it since we looked.
            found = target.client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(
            f"the MLflow experiment {name!r} is deleted; restore it "
            f"(mlflow experiments restore --experiment-id {found.experiment_id}) "
            "or set tracking.experiment"
        )
    return found.experiment_id


def _set_tags(target: Target, event: Event) -> None:
    from mlflow.entities import RunTag

    for chunk in _chunks(event["tags"]):
        tags = [RunTag(clean_name(key), clip(value, MAX_TAG_CHARACTERS)) for key, value in chunk]
        target.client.log_batch(target.run_id, tags=tags)


def _resume(target: Target, event: Event) -> None:
    target.client.update_run(target.run_id, status="RUNNING")
    _set_tags(target, event)


def _log_dataset(target: Target, event: Event) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = event["digest"][:MAX_DIGEST_CHARACTERS]
    dataset = Dataset(event["name"], digest, source_type="code", source='{"tags": {}}')
    tags = [InputTag(key="mlflow.data.context", value=event["context"])]
    target.client.log_inputs(target.run_id, [DatasetInput(dataset, tags)])


def _log_artifact(target: Target, event: Event) -> None:
    path, folder = Path(event["path"]), event["folder"] or None
    with patient_requests():
        if path.is_dir():
            target.client.log_artifacts(target.run_id, str(path), folder)
        else:
            target.client.log_artifact(target.run_id, str(path), folder)


def _log_weights(target: Target, event: Event) -> None:
    """Make the weights folder an MLflow model of this run and register it where asked."""
    client, record = target.client, target.record
    folder = Path(event["path"])
    if not folder.is_dir():
        raise FileNotFoundError(f"the weights folder {folder} is gone")
    model = _logged_model(target, event, folder)
    if str(model.status) != "READY":
        with patient_requests():
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    for name, (value, time, step) in event["metrics"].items():
        key = clean_name(name)
        client.log_metric(target.run_id, key, float(value), time, step, model_id=model.model_id)
    if event["register_as"]:
        _register(target, event["register_as"], model.model_id)
    record.model_id = model.model_id
    client.set_tag(target.run_id, f"{record.stage}.model_id", model.model_id)


def _logged_model(target: Target, event: Event, folder: Path) -> "LoggedModel":
    client, record = target.client, target.record
    assert record.experiment_id is not None, "the create event comes first"
    found = client.search_logged_models(
        [record.experiment_id], f"tags.`{KEY_TAG}` = '{event['id']}'", max_results=1
    )
    if found:
        return found[0]
    card = folder / "model.json"
    architecture = json.loads(card.read_text()).get("architecture", {}) if card.exists() else {}
    tags = {KEY_TAG: event["id"], "stage": record.stage, f"{record.stage}.run_id": target.run_id}
    return client.create_logged_model(
        record.experiment_id,
        # MLflow refuses / : . % and quotes in the names of models.
        name=re.sub(r"[^A-Za-z0-9_-]", "-", record.run_name) or record.stage,
        source_run_id=target.run_id,
        tags=tags,
        params={key: clip(value, MAX_PARAM_CHARACTERS) for key, value in architecture.items()},
        model_type="vision-transformer",
    )


def _register(target: Target, name: str, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    client = target.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((found for found in versions if found.source == source), None)
    if version is None:
        with process_wide_store(target.uri):
            version = client.create_model_version(
                name, source, run_id=target.run_id, model_id=model_id
            )
        registered = json.dumps([{"name": name, "version": int(version.version)}])
        # Names the version on the model's page. A server sets it by itself, a database does not.
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": registered})
    # An event sent once more must not take the alias away from a later version.
    if all(int(version.version) >= int(other.version) for other in versions):
        client.set_registered_model_alias(name, NEWEST_ALIAS, version.version)


def _link_transfer(target: Target, event: Event) -> None:
    """Show this run's result on the page of the pretrained model, if this store has that model."""
    from mlflow.exceptions import MlflowException

    client = target.client
    _set_tags(target, event)
    model_id = event["tags"].get("pretrain.model_id")
    if model_id:
        try:
            client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("the pretrained model %s is not in this MLflow: not linked", model_id)
            model_id = None
    name, value = metric_names.transfer(event["task"], event["score"]), float(event["value"])
    client.log_metric(target.run_id, name, value, event["time"], 0, model_id=model_id)


def _close(target: Target, event: Event) -> None:
    target.client.set_terminated(target.run_id, event["status"], event["time"])


APPLY: dict[str, Callable[[Target, Event], None]] = {
    "create": _create,
    "resume": _resume,
    "tags": _set_tags,
    "dataset": _log_dataset,
    "artifact": _log_artifact,
    "weights": _log_weights,
    "transfer": _link_transfer,
    "close": _close,
}
