"""Broken images of a task: left out of the scores, counted in the result, the same when resumed."""

import json
import shutil

import pytest

from configs.errors import RefusedInput
from data_pipeline.dataset import open_dataset
from finetune.task_data import open_task_data, prepare_shards
from finetune.transfer import transfer
from tests.data_pipeline.sample_shards import blank_image
from tests.finetune.toy_task import toy_config


@pytest.fixture
def folders(toy_folder, tmp_path):
    """Training and test shards of a copy of the toy task."""
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    return folder, *prepare_shards("image-folder", folder)


def test_the_result_says_how_many_images_were_left_out(folders, tmp_path):
    folder, train, test = folders
    config = toy_config(data_dir=folder, run_dir=tmp_path / "run", steps=10)
    parts = open_task_data(
        (train, test), validation_fraction=0.1, subset=config.subset, seed=config.seed
    )
    for row in (0, 3):
        blank_image(parts.test, row)
    blank_image(parts.validation, 1)
    for row in (2, 5, 11):
        blank_image(parts.train, row)
    assert transfer(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["broken_images"] == 2
    assert result["test"]["images"] == parts.test.num_images - 2
    assert result["broken_images"] == {"train": 3, "validation": 1}
    for name, rows in (("", [2, 5, 11]), ("-validation", [1]), ("-test", [0, 3])):
        lines = (tmp_path / "run" / f"quarantine{name}.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["row"] for line in lines) == rows
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"validation/broken_images":1.0' in metrics and '"test/broken_images":2.0' in metrics


def test_ruins_are_refused_by_the_option_s_name(folders, tmp_path):
    folder, _, test = folders
    for entry in open_dataset(test).manifest.shards:
        (test / entry.path).unlink()
    config = toy_config(data_dir=folder, run_dir=tmp_path / "run")
    with pytest.raises(RefusedInput, match=r"15 of 15 .* that max_broken_fraction .*-test\.jsonl"):
        transfer(config)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "error: failed: 15 of 15 images cannot be read" in log
