"""Full-size photographs in their official layout, cut to some of the classes."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from finetune.transfer import transfer
from tests.finetune.toy_task import forget_accelerate, toy_config

DATA = Path(
    os.environ.get("VITRAIN_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
).resolve()
ARCHIVE = DATA / "flowers102-12classes.tar"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"real images are missing: {ARCHIVE}"),
]


@pytest.fixture(autouse=True)
def _accelerate_is_new():
    yield
    forget_accelerate()


def test_flowers_of_twelve_classes_run_as_the_task(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    config = toy_config(
        task="flowers",
        data_dir=tmp_path,
        run_dir=tmp_path / "run",
        resolution=32,
        steps=2,
        augment={"crop": "area"},
    )
    assert transfer(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["train_images"], result["validation_images"]) == (88, 10)
    assert result["test"]["images"] == 443
    # The labels are those of all 102 classes; 12 of them have images.
    assert len(result["per_class"]) == 102
    assert sum(accuracy is not None for accuracy in result["per_class"].values()) == 12
