from pathlib import Path

import pytest

from configs.errors import RefusedInput
from configs.schema import FinetuneConfig
from configs.subset import SubsetConfig
from finetune.options import (
    CONFIG_FOLDER,
    check_options,
    identity,
    refuse_differences,
    task_config_file,
    with_run_dir,
)
from tests.finetune.toy_task import toy_config


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "cifar10.yaml"),
        (["--task", "pets", "--seed", "3"], "pets.yaml"),
        (["--seed", "3", "--task=flowers"], "flowers.yaml"),
    ],
)
def test_a_task_brings_its_config(argv, name):
    assert task_config_file(argv) == CONFIG_FOLDER / name


@pytest.mark.parametrize("argv", [["--task", "shards"], ["--task", "nonsense"], ["--task"]])
def test_other_tasks_start_from_the_schema(argv):
    assert task_config_file(argv) is None


@pytest.mark.parametrize(
    ("pretrained", "name"),
    [
        ("scratch", "scratch"),
        ("runs/my-pretraining", "my-pretraining"),
        ("runs/my-pretraining/export/model.safetensors", "my-pretraining"),
        ("/weights/B_16.npz", "B_16"),
        ("models:/vit-b16@best", "best"),
        ("runs:/0123abcd", "0123abcd"),
        ("timm:vit_base_patch32_224.augreg_in21k", "vit_base_patch32_224.augreg_in21k"),
    ],
)
def test_default_run_folder_names_task_weights_and_seed(pretrained, name):
    config = FinetuneConfig(task="pets", pretrained=pretrained, seed=2)
    assert with_run_dir(config).run_dir == Path("runs") / f"finetune-pets-{name}-seed2"


def test_a_given_run_folder_is_kept():
    assert with_run_dir(toy_config(run_dir="here")).run_dir == Path("here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": "runs/none"}, ["--pretrained runs/none", "no such file"]),
        ({"resolution": 10}, ["--resolution 10", "8 or 12"]),
        ({"learning_rates": (0.1, 0.1)}, ["--learning-rates", "twice"]),
        ({"batch": {"global_images": 7}}, ["global_images = 7", "world size 2"]),
    ],
)
def test_impossible_options_are_refused_before_torch(changes, words):
    with pytest.raises(RefusedInput) as refused:
        check_options(toy_config(**changes), num_processes=2)
    assert all(word in str(refused.value) for word in words)


def test_what_does_not_change_the_result_is_no_part_of_the_identity():
    before = identity(toy_config())
    after = toy_config(
        run_dir="elsewhere",
        data_dir="elsewhere",
        resume="must",
        batch={"global_images": 8, "micro_images": 2},
        checkpoint={"every_steps": 1},
        logging={"every_steps": 7},
        loader={"threads": 2},
    )
    assert identity(after) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "digits"},
        {"seed": 1},
        {"steps": 7},
        {"learning_rates": (0.1, 0.2)},
        {"batch": {"global_images": 16}},
        {"augment": {"flip": False}},
        {"images_per_class": 3},
        {"data": {"classes": ("red",)}},
    ],
)
def test_what_changes_the_result_is(changes):
    with pytest.raises(RefusedInput, match=next(iter(changes))):
        refuse_differences(identity(toy_config()), identity(toy_config(**changes)), Path("r"))


def test_an_option_that_is_newer_than_the_run_had_its_default():
    before = {k: v for k, v in identity(toy_config()).items() if not k.startswith("data.")}
    refuse_differences(before, identity(toy_config()), Path("r"))
    with pytest.raises(RefusedInput, match=r"data\.fraction was none, now 0\.5"):
        refuse_differences(before, identity(toy_config(data={"fraction": 0.5})), Path("r"))


def test_images_per_class_is_a_short_name_within_the_subset():
    assert toy_config(images_per_class=3).subset == SubsetConfig(images_per_class=3)
    subset = toy_config(data={"images_per_class": 3, "classes": [7, 9]}).subset
    assert subset == SubsetConfig(images_per_class=3, classes=("7", "9"))
    for data in ({"images_per_class": 3}, {"fraction": 0.5}):
        with pytest.raises(ValueError, match=r"images_per_class = 3 and data.* are both set"):
            toy_config(images_per_class=3, data=data)
