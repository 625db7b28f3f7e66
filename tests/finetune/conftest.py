"""One toy task for all tests of the package."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline import build, stream_writer
from finetune.task_data import prepare_shards
from tests.finetune.toy_task import forget_accelerate, write_image_folder


@pytest.fixture(scope="package", autouse=True)
def _one_core() -> Iterator[None]:
    """Writers work in this process: workers of their own import torch for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, stream_writer):
            patch.setattr(module, "num_usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="package")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the task image-folder, with its shards built."""
    folder = write_image_folder(tmp_path_factory.mktemp("toy"))
    prepare_shards("image-folder", folder)
    return folder


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs and stores that a test makes by default stay in its own folder; so does Accelerate."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    yield
    forget_accelerate()
