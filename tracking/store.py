"""Which MLflow a run belongs to, and how it is opened without surprises."""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from configs.errors import RefusedInput
from tracking.provenance import REPOSITORY_ROOT, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE_FOLDER = REPOSITORY_ROOT / "mlruns"
DEFAULT_URI = f"sqlite:///{STORE_FOLDER / 'mlflow.db'}"
SERVER_SCHEMES = ("http", "https", "databricks")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")

# MLflow's own defaults retry a dead server for four minutes a call, report usage to its makers and
# write to the console. Whoever sets one of these in the environment keeps the value.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
UPLOAD_TIMEOUT_SECONDS = 300


def tracking_uri(setting: str | None) -> str:
    """The store to use: the config's, else MLFLOW_TRACKING_URI, else sqlite in the repository.

    Raises:
        RefusedInput: The URI cannot work: unknown scheme, no host, a store in memory or in plain
            files, a database folder that cannot be written, or credentials in the config.
    """
    source = "tracking.uri" if setting else "MLFLOW_TRACKING_URI"
    uri = setting or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    if setting and redact(setting) != setting:
        raise RefusedInput(
            f"tracking.uri = {redact(setting)} came with a password, which would end up in files; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or the whole address as "
            "MLFLOW_TRACKING_URI) in the environment instead"
        )
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        return _absolute_sqlite(uri, source)
    if scheme not in SERVER_SCHEMES + DATABASE_SCHEMES and uri != "databricks":
        example = f"sqlite:///{STORE_FOLDER / 'mlflow.db'} or http://HOST:5000"
        raise RefusedInput(
            f"{source} = {redact(uri)} is no MLflow store that can be used (MLflow's plain file "
            f"store is gone); give for example {example}"
        )
    if scheme in ("http", "https") and not urlsplit(uri).hostname:
        raise RefusedInput(f"{source} = {redact(uri)} names no host; write http://HOST:5000")
    return uri


def _absolute_sqlite(uri: str, source: str) -> str:
    path = sqlite_path(uri)
    if path is None:
        raise RefusedInput(
            f"{source} = {uri} keeps results in memory only; name a file, sqlite:////abs/mlflow.db"
        )
    path = path.expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedInput(f"{source} = {uri}: {path.parent} cannot be made ({error})") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        raise RefusedInput(f"{source} = {uri}: {path} cannot be written; choose another file")
    return f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of an sqlite URI; None for other stores and for one in memory."""
    scheme, _, rest = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or rest in ("", ":memory:"):
        return None
    return Path(rest.partition("?")[0])


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where a new experiment's files go; None lets a server decide.

    Set explicitly for databases, because MLflow would take a folder of the current directory.
    """
    if urlsplit(uri).scheme in SERVER_SCHEMES or uri == "databricks":
        return None
    database = sqlite_path(uri)
    folder = database.parent if database is not None else STORE_FOLDER
    return (folder / "artifacts" / experiment.replace("/", "_")).as_uri()


def prepare_environment() -> None:
    """Set MLflow's switches; must happen before MLflow is imported for the first time."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    # Each retry would be a warning of its own on the console; an outage is reported once, by us.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def open_client(uri: str) -> "MlflowClient":
    """A client of this store; imports MLflow (seconds) and makes a missing sqlite schema.

    Processes that create one sqlite store at the same time break it for good, hence the file lock.
    """
    prepare_environment()
    from filelock import FileLock
    from mlflow import MlflowClient

    database = sqlite_path(uri)
    if database is None:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=120):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def patient_requests() -> contextlib.AbstractContextManager[None]:
    """Inside, MLflow's requests may take minutes: a server answers an upload after storing it."""
    return _variable("MLFLOW_HTTP_REQUEST_TIMEOUT", str(UPLOAD_TIMEOUT_SECONDS))


def process_wide_store(uri: str) -> contextlib.AbstractContextManager[None]:
    """Inside, the parts of MLflow that know no client look into this store, too.

    Without it MLflow's model registry makes an mlflow.db in the current directory.
    """
    return _variable("MLFLOW_TRACKING_URI", uri)


def ui_command(uri: str | None = None) -> str:
    """What to type to look at the results of this store: a command, or a server's address."""
    uri = tracking_uri(uri)
    if urlsplit(uri).scheme in ("http", "https"):
        return f"open {redact(uri)} in a browser"
    # The environment's own command, which works whether or not the environment is activated.
    mlflow = Path(sys.executable).with_name("mlflow")
    if mlflow.is_relative_to(Path.cwd()):
        mlflow = mlflow.relative_to(Path.cwd())
    return shlex.join([str(mlflow), "ui", "--backend-store-uri", redact(uri)])
