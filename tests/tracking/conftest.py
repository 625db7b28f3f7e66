"""One sqlite store for all tests of the package: making its schema is the slow part."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.groups import TrackingConfig
from tracking import lineage
from tracking.run import TrackedRun, start_run
from tracking.store import open_client


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    open_client(uri)
    return uri


@pytest.fixture(scope="session")
def client(store_uri: str):
    return open_client(store_uri)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(lineage, "CACHE_FOLDER", tmp_path / "weights-cache")
    # A store that MLflow makes in the current directory on the quiet would be seen here.
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def begin(store_uri: str, tmp_path: Path) -> Iterator[Callable[..., TrackedRun]]:
    """Starts runs like a training loop does, and ends what a test left open."""
    started = []

    def start(name: str = "run", *, stage: str = "pretrain", **options) -> TrackedRun:
        settings = TrackingConfig(**({"uri": store_uri} | options.pop("settings", {})))
        facts = {"params": {"optim.lr": 0.1}, "tags": {}, "is_main": True} | options
        started.append(start_run(tmp_path / name, settings, stage=stage, **facts))
        return started[-1]

    yield start
    for run in started:
        run.close("KILLED", timeout_seconds=0)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    card = {"architecture": {"depth": 3, "width": 192}, "classes": ["a", "b"]}
    (folder / "model.json").write_text(json.dumps(card))
    return folder
