from typing import get_args

import pytest
from torchvision import datasets

from configs.load import load_config
from configs.schema import FinetuneConfig
from data_pipeline.sources.registry import SOURCES
from finetune.options import CONFIG_FOLDER
from finetune.tasks import TASKS


def test_the_table_has_a_row_for_every_task_that_can_be_chosen():
    assert tuple(TASKS) == get_args(FinetuneConfig.model_fields["task"].annotation)


@pytest.mark.parametrize("name", [n for n, task in TASKS.items() if task.source])
def test_every_source_exists_and_has_the_splits(name):
    task = TASKS[name]
    splits = SOURCES[task.source].splits
    assert not splits or {task.train_split, task.test_split} <= set(splits)


def test_validation_parts_are_the_protocols():
    fractions = {name: TASKS[name].validation_fraction for name in TASKS}
    protocol = {"cifar10": 0.02, "cifar100": 0.02, "pets": 0.1, "flowers": 0.1}
    assert {name: fractions[name] for name in protocol} == protocol


def test_downloads_are_those_of_torchvision():
    pets = datasets.OxfordIIITPet
    flowers = datasets.Flowers102
    files = [name for name, _ in flowers._file_dict.values()]
    expected = {
        "cifar10": (datasets.CIFAR10.url,),
        "cifar100": (datasets.CIFAR100.url,),
        "pets": tuple(url for url, _ in pets._RESOURCES),
        "flowers": tuple(flowers._download_url_prefix + name for name in files),
    }
    assert {name: TASKS[name].downloads for name in expected} == expected
    assert TASKS["cifar10"].folder == datasets.CIFAR10.base_folder
    assert TASKS["cifar100"].folder == datasets.CIFAR100.base_folder


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_is_named_after_its_task_and_says_what_was_measured(path):
    config = load_config(FinetuneConfig, ["--config", str(path)], "test").config
    assert config.task == path.stem
    assert "# Measured here:" in path.read_text(encoding="utf-8")
