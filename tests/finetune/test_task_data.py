from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.build import build_dataset
from data_pipeline.index import open_dataset
from finetune import download, task_data
from finetune.task_data import open_task_data, prepare_shards, validation_rows
from finetune.tasks import TASKS
from tests.finetune.toy_task import CLASSES, TRAIN_IMAGES_PER_CLASS, write_image_folder


@pytest.fixture(scope="module")
def shards(toy_folder: Path) -> tuple[Path, Path]:
    return prepare_shards("image-folder", toy_folder)


def test_an_image_folder_becomes_shards_once(toy_folder, shards, monkeypatch):
    monkeypatch.setattr(task_data, "build_dataset", None)  # would fail if it were called
    assert prepare_shards("image-folder", toy_folder) == shards
    train, test = open_dataset(shards[0]), open_dataset(shards[1])
    assert train.classes == test.classes == CLASSES
    assert (train.num_images, test.num_images) == (60, 15)


def test_any_task_takes_shards_or_an_image_folder(shards, tmp_path):
    for name, folder in zip(("train", "val"), shards, strict=True):
        (tmp_path / name).symlink_to(folder)
    assert prepare_shards("cifar10", tmp_path) == (tmp_path / "train", tmp_path / "val")
    assert prepare_shards("shards", tmp_path) == (tmp_path / "train", tmp_path / "val")


def test_digits_need_no_files(tmp_path):
    train, test = (open_dataset(folder) for folder in prepare_shards("digits", tmp_path))
    assert (train.num_images, test.num_images, train.num_classes) == (1000, 797, 10)


@pytest.mark.parametrize("task", ["image-folder", "shards"])
def test_an_empty_folder_is_refused_with_the_layout(task, tmp_path):
    with pytest.raises(RefusedInput, match=r"must hold train/ and test/ or val/"):
        prepare_shards(task, tmp_path)


@pytest.mark.parametrize("task", ["cifar10", "cifar100", "pets", "flowers"])
def test_offline_says_what_to_fetch_and_where_to_put_it(task, tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(RefusedInput) as refused:
        prepare_shards(task, tmp_path)
    message = str(refused.value)
    assert all(url in message for url in TASKS[task].downloads)
    assert f"put them into {tmp_path / TASKS[task].download_folder}" in message
    assert "no route to host" in message


def test_a_download_restores_the_callers_timeout(tmp_path, monkeypatch):
    import socket

    seen = []
    monkeypatch.setattr(
        download, "_torchvision_download", lambda *_: seen.append(socket.getdefaulttimeout())
    )
    download.download("pets", tmp_path)
    assert seen == [60.0] and socket.getdefaulttimeout() is None


def test_validation_part_is_fixed_mixed_and_apart(shards):
    data = open_task_data(shards, validation_fraction=0.2, subset=SubsetConfig(), seed=0)
    other = open_task_data(shards, validation_fraction=0.2, subset=SubsetConfig(), seed=1)
    assert data.validation.num_images == 12 and data.train.num_images == 48
    assert not set(data.validation.source_row) & set(data.train.source_row)
    assert data.validation.filter_digest == other.validation.filter_digest
    # Sorted by class as the source is, its last fifth would hold one class only.
    assert set(data.validation.label) == {0, 1, 2}


def test_validation_part_does_not_depend_on_the_shards_shuffle(toy_folder, shards, tmp_path):
    again = tmp_path / "other-seed"
    build_dataset("image-folder", toy_folder, "train", again, seed=5, shard_images=7)
    first, second = open_dataset(shards[0]), open_dataset(again)
    assert first.digest != second.digest
    held_out = [d.source_row[validation_rows(d, 0.1)] for d in (first, second)]
    assert sorted(held_out[0]) == sorted(held_out[1])


def test_images_per_class_are_chosen_by_the_seed(shards):
    options = {"validation_fraction": 0.1, "subset": SubsetConfig(images_per_class=4)}
    first = open_task_data(shards, seed=0, **options).train
    same = open_task_data(shards, seed=0, **options).train
    other = open_task_data(shards, seed=1, **options).train
    assert np.bincount(first.label).tolist() == [4, 4, 4]
    assert first.filter_digest == same.filter_digest != other.filter_digest


def test_a_class_with_fewer_images_gives_all_it_has(shards, caplog):
    subset = SubsetConfig(images_per_class=1000)
    data = open_task_data(shards, validation_fraction=0.1, subset=subset, seed=0)
    assert data.train.num_images == 3 * TRAIN_IMAGES_PER_CLASS - 6
    assert "3 classes have fewer than images_per_class = 1000" in caplog.text


def test_classes_and_label_map_hold_for_all_three_parts(shards, tmp_path):
    (tmp_path / "map.yaml").write_text("red: warm\ngreen: cold\nblue: cold\n")
    for subset, classes, sizes in (
        (SubsetConfig(classes=("red", "blue")), ("blue", "red"), (40, 10)),
        (SubsetConfig(label_map=tmp_path / "map.yaml"), ("cold", "warm"), (60, 15)),
    ):
        data = open_task_data(shards, validation_fraction=0.2, subset=subset, seed=0)
        assert data.train.classes == data.validation.classes == data.test.classes == classes
        assert data.train.num_images + data.validation.num_images == sizes[0]
        assert data.test.num_images == sizes[1]
        assert set(data.test.label) == {0, 1}


def test_no_filter_moves_a_validation_image_into_the_training_set(shards):
    parts = {}
    for name, subset in {
        "all": SubsetConfig(),
        "classes": SubsetConfig(classes=("red", "blue")),
        "fraction": SubsetConfig(fraction=0.5),
    }.items():
        data = open_task_data(shards, validation_fraction=0.2, subset=subset, seed=0)
        parts[name] = [set(d.source_row.tolist()) for d in (data.train, data.validation)]
    assert parts["classes"][1] < parts["all"][1] and parts["fraction"][1] == parts["all"][1]
    assert all(not train & parts["all"][1] for train, _ in parts.values())


def test_excluded_images_leave_training_and_validation_part(shards, tmp_path):
    whole = open_dataset(shards[0])
    names = [whole.manifest.shards[shard].path for shard in whole.shard[:30]]
    keys = [whole.key(row) for row in range(30)]
    pq.write_table(pa.table({"train_shard": names, "train_key": keys}), tmp_path / "leaks.parquet")
    subset = SubsetConfig(exclude=tmp_path / "leaks.parquet")
    data = open_task_data(shards, validation_fraction=0.2, subset=subset, seed=0)
    left = {*data.train.source_row.tolist(), *data.validation.source_row.tolist()}
    assert left == set(whole.source_row[30:].tolist()) and data.test.filter_digest == ""


def test_other_classes_in_the_test_set_are_refused(shards, tmp_path):
    folder = write_image_folder(tmp_path / "other", seed=1)
    (folder / "train" / "red").rename(folder / "train" / "purple")
    (folder / "test" / "red").rename(folder / "test" / "purple")
    other = prepare_shards("image-folder", folder)
    with pytest.raises(RefusedInput, match="only one of them has 'purple'"):
        open_task_data(
            (shards[0], other[1]), validation_fraction=0.1, subset=SubsetConfig(), seed=0
        )


def test_a_validation_part_that_leaves_nothing_is_refused(shards):
    with pytest.raises(RefusedInput, match="leaves none to train on"):
        open_task_data(shards, validation_fraction=0.999, subset=SubsetConfig(), seed=0)
