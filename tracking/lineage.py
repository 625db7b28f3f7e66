"""From the MLflow name of pretrained weights to files, and to the tags that link transfers."""

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import RefusedInput
from tracking.provenance import redact
from tracking.record import RunRecord, TrackingFiles
from tracking.sender import failure_reason
from tracking.store import STORE_FOLDER, open_client, patient_requests, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)
CACHE_FOLDER = STORE_FOLDER / "weights"
RUN_ID_TAG = "pretrain.run_id"
MODEL_ID_TAG = "pretrain.model_id"


@dataclass(frozen=True)
class ResolvedWeights:
    """Where weights lie, and which MLflow run and model they come from."""

    path: Path | str
    """A folder or file; the reference itself where MLflow does not know it (timm:NAME, scratch)."""
    tags: dict[str, str] = field(default_factory=dict)
    """pretrain.run_id and pretrain.model_id, as far as they are known."""


def resolve_weights(
    reference: str, uri: str | None = None, *, option: str = "--pretrained"
) -> ResolvedWeights:
    """Files and origin of pretrained weights.

    Args:
        reference: runs:/ID, models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID (downloaded once
            into mlruns/weights/), a run folder or its exported weights (with the ids it was tracked
            under), or anything else, which is given back unchanged.
        uri: The MLflow store; None means MLFLOW_TRACKING_URI, else the repository's own.
        option: What named the weights, for messages.

    Raises:
        RefusedInput: No such run, model or version; a run without weights; MLflow does not answer.
    """
    scheme, separator, name = reference.partition(":/")
    if separator and scheme in ("runs", "models"):
        return _from_mlflow(f"{option} {reference}", scheme, name.strip("/"), tracking_uri(uri))
    path = Path(reference)
    exports = [folder for folder in (path, path.parent) if folder.name == "export"]
    run_dirs = [path, *(folder.parent for folder in exports)]
    found = next((folder for folder in run_dirs if TrackingFiles(folder).record.is_file()), None)
    if found is None:
        return ResolvedWeights(reference)
    record = RunRecord.load(TrackingFiles(found).record)
    ids = {RUN_ID_TAG: record.run_id, MODEL_ID_TAG: record.model_id}
    return ResolvedWeights(path, {key: value for key, value in ids.items() if value})


def _from_mlflow(told: str, scheme: str, name: str, uri: str) -> ResolvedWeights:
    try:
        client = open_client(uri)
        model_id = (_model_of_run if scheme == "runs" else _model_id)(client, name, told)
        model = client.get_logged_model(model_id)
        path = _download(uri, model)
    except RefusedInput:
        raise
    except Exception as error:
        # MLflow's client lets errors of several libraries through: requests, sqlalchemy, its own.
        raise RefusedInput(f"{told}: {_explain(error, redact(uri))}") from error
    tags = {RUN_ID_TAG: model.source_run_id, MODEL_ID_TAG: model_id}
    return ResolvedWeights(path, {key: value for key, value in tags.items() if value})


def _explain(error: Exception, uri: str) -> str:
    code = getattr(error, "error_code", None)
    reason = failure_reason(error)
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
        return f"MLflow at {uri} has no such thing ({reason}); list what there is with `mlflow ui`"
    return (
        f"MLflow at {uri} cannot be asked ({reason}); "
        "check the address (tracking.uri or MLFLOW_TRACKING_URI), or give a run folder or a file"
    )


def _model_of_run(client: "MlflowClient", run_id: str, told: str) -> str:
    run = client.get_run(run_id)
    models = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run_id}'",
        max_results=1,
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    if not models:
        raise RefusedInput(
            f"{told}: run {run.info.run_name!r} has no weights "
            f"(its status is {run.info.status}); weights are exported when pretraining ends"
        )
    return models[0].model_id


def _model_id(client: "MlflowClient", name: str, told: str) -> str:
    if "@" in name:
        version = client.get_model_version_by_alias(*name.rsplit("@", 1))
    elif "/" in name:
        version = client.get_model_version(*name.rsplit("/", 1))
    elif name.startswith("m-"):
        return name
    else:
        raise RefusedInput(
            f"{told} names no version; write models:/{name}@ALIAS, "
            f"models:/{name}/VERSION or models:/m-ID"
        )
    scheme, _, model_id = (version.source or "").partition(":/")
    if scheme != "models" or not model_id.startswith("m-"):
        raise RefusedInput(
            f"{told} was not registered by vitrain (its source is "
            f"{version.source}); download its files and give the path"
        )
    return model_id


def _download(uri: str, model: "LoggedModel") -> Path:
    """The model's files in the cache; a model is never changed once it is there."""
    from filelock import FileLock
    from mlflow.artifacts import download_artifacts

    model_id = model.model_id
    folder = CACHE_FOLDER / model_id
    CACHE_FOLDER.mkdir(parents=True, exist_ok=True)
    # Several ranks of one finetuning may ask at once; the first one downloads.
    with FileLock(CACHE_FOLDER / f"{model_id}.lock"):
        if folder.is_dir():
            return folder
        temporary = CACHE_FOLDER / f".{model_id}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with patient_requests():
            downloaded = download_artifacts(
                # Not models:/ID, which some of MLflow's code looks up in the process-wide store.
                artifact_uri=model.artifact_location,
                dst_path=str(temporary),
                tracking_uri=uri,
            )
        os.replace(downloaded, folder)
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
