"""From whatever lies in the data folder to the images a task trains, validates and tests on.

Every layout ends as WebDataset shards, read exactly as in pretraining: raw files are turned into
shards once, under `<data_dir>/vitrain-shards/`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.build import build_dataset
from data_pipeline.few_shot_images import TEST_FOLDERS
from data_pipeline.index import MANIFEST_FILE, ShardedDataset, open_dataset
from data_pipeline.order import stable_permutation
from data_pipeline.real_labels import RealLabels, read_real_labels
from data_pipeline.subset import class_images, shortage_told, training_images
from finetune.download import download
from finetune.tasks import TASKS, Task

logger = logging.getLogger(__name__)

SHARDS_FOLDER = "vitrain-shards"


@dataclass(frozen=True)
class TaskData:
    """The three parts of a task; training and validation images come from one dataset.

    `real_labels` say which classes count as right for each test image, if it was asked for.
    """

    train: ShardedDataset
    validation: ShardedDataset
    test: ShardedDataset
    real_labels: RealLabels | None = None


@dataclass(frozen=True)
class _Raw:
    """Images that are not shards yet: which reader finds them where, under which split names.

    `folder` is None for images that are computed or come with a library.
    """

    source: str
    folder: Path | None
    splits: tuple[str, str]


def prepare_shards(task_name: str, data_dir: Path) -> tuple[Path, Path]:
    """Find the task's training and test shards, or make them (download, build).

    Looked for in this order: `train/` and `test/` (or `val/`) that are shards; shards that were
    built here before; `train/` and `test/` as image folders; the official files; a download.

    Returns:
        Folder of the training shards, folder of the test shards.

    Raises:
        RefusedInput: Nothing usable lies there and it cannot be downloaded.
    """
    if test := _test_folder(data_dir, MANIFEST_FILE):
        return data_dir / "train", data_dir / test
    task = TASKS[task_name]
    if not task.source:
        raise RefusedInput(_nothing_there(task_name, data_dir))
    built = data_dir / SHARDS_FOLDER
    train, test_shards = built / f"{task_name}-train", built / f"{task_name}-test"
    try:
        built.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedInput(
            f"--data-dir {data_dir} cannot be written to ({error.strerror}), and shards are built "
            "there; give another folder"
        ) from error
    # Two runs that start together build once: the second waits here and finds it done.
    with FileLock(built / f".{task_name}.lock"):
        if all((folder / MANIFEST_FILE).is_file() for folder in (train, test_shards)):
            logger.info("task %s: using the shards built earlier in %s", task_name, built)
            return train, test_shards
        raw = _find_raw(task_name, task, data_dir)
        for split, folder in zip(raw.splits, (train, test_shards), strict=True):
            logger.info("task %s: building shards of '%s' in %s", task_name, split, folder)
            logger.info("%s", build_dataset(raw.source, raw.folder, split, folder).text())
    return train, test_shards


def needs_download(task_name: str, data_dir: Path) -> bool:
    """Whether `prepare_shards` would have to fetch the task's files.

    Raises:
        RefusedInput: Nothing usable lies there, and it is nothing that could be downloaded.
    """
    task = TASKS[task_name]
    if _test_folder(data_dir, MANIFEST_FILE):
        return False
    if not task.source:
        raise RefusedInput(_nothing_there(task_name, data_dir))
    built = data_dir / SHARDS_FOLDER
    names = (f"{task_name}-train", f"{task_name}-test")
    if all((built / name / MANIFEST_FILE).is_file() for name in names):
        return False
    if (data_dir / "train").is_dir() and _test_folder(data_dir, ""):
        return False
    if task_name == "image-folder":
        raise RefusedInput(_nothing_there(task_name, data_dir))
    return bool(task.needed) and not _is_there(task, data_dir)


def _find_raw(task_name: str, task: Task, data_dir: Path) -> _Raw:
    if (data_dir / "train").is_dir() and (test := _test_folder(data_dir, "")):
        return _Raw("image-folder", data_dir, ("train", test))
    if task_name == "image-folder":
        raise RefusedInput(_nothing_there(task_name, data_dir))
    splits = (task.train_split, task.test_split)
    if not task.needed:
        return _Raw(task.source, None, splits)
    if not _is_there(task, data_dir):
        download(task_name, data_dir)
    return _Raw(task.source, data_dir, splits)


def _is_there(task: Task, data_dir: Path) -> bool:
    folders = (data_dir, data_dir / task.folder)
    return any(all((folder / name).exists() for name in task.needed) for folder in folders)


def _test_folder(data_dir: Path, needed_file: str) -> str | None:
    """Name of the test folder, if it and `train/` both hold `needed_file`."""
    if not (data_dir / "train" / needed_file).exists():
        return None
    for name in TEST_FOLDERS:
        if (data_dir / name / needed_file).exists() and (data_dir / name).is_dir():
            return name
    return None


def _nothing_there(task_name: str, data_dir: Path) -> str:
    names = " or ".join(f"{name}/" for name in TEST_FOLDERS)
    content = "folders of images, one per class" if task_name == "image-folder" else MANIFEST_FILE
    how = "" if task_name == "image-folder" else " (data_pipeline.build and .index write it)"
    return (
        f"task {task_name}: --data-dir {data_dir} must hold train/ and {names}, each with "
        f"{content}{how}"
    )


def open_task_data(
    folders: tuple[Path, Path],
    *,
    validation_fraction: float,
    subset: SubsetConfig,
    seed: int,
    test_real_labels: Path | None = None,
) -> TaskData:
    """Open the shards and choose the images of each part.

    The validation part is the same for every seed, so runs are compared on the same images; which
    of the rest `subset` takes depends on `seed`. The part is drawn before anything is filtered: no
    filter moves one of its images into the training set.

    Raises:
        RefusedInput: The two folders do not have the same classes or kind of labels, too few images
            to hold any out, a subset that cannot be had, or a second labelling that is not of the
            test images.
    """
    whole, test = open_dataset(folders[0]), open_dataset(folders[1])
    _refuse_two_kinds(whole, test)
    held_out = validation_rows(whole, validation_fraction)
    rest = np.setdiff1d(np.arange(whole.num_images), held_out)
    train = training_images(whole, subset, seed=seed, candidates=rest)
    if shortage := shortage_told(train, subset.images_per_class):
        logger.warning(shortage)
    all_of_them = subset.model_copy(update={"fraction": None, "images_per_class": None})
    validation = training_images(whole, all_of_them, seed=seed, candidates=held_out)
    test = class_images(test, subset)
    _refuse_parts_without_positives(validation, test)
    real_labels = None
    if test_real_labels is not None:
        real_labels = read_real_labels(test_real_labels, test, "test_real_labels")
    return TaskData(train=train, validation=validation, test=test, real_labels=real_labels)


def _refuse_two_kinds(train: ShardedDataset, test: ShardedDataset) -> None:
    if train.is_multi_label != test.is_multi_label:
        sets, single = (train, test) if train.is_multi_label else (test, train)
        raise RefusedInput(
            f"{sets.folder} has label sets, {single.folder} one label an image; give two of a kind"
        )
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        told = f"only one of them has {differing[0]!r}" if differing else "their order differs"
        raise RefusedInput(
            f"{train.folder} has {train.num_classes} classes, {test.folder} has "
            f"{test.num_classes}: {told}; training and test images need the same classes"
        )


def _refuse_parts_without_positives(validation: ShardedDataset, test: ShardedDataset) -> None:
    """Without an image that shows something, there is no average precision to compare by."""
    remedies = {"validation": "raise validation_fraction", "test": "give other test images"}
    for (part, remedy), dataset in zip(remedies.items(), (validation, test), strict=True):
        if dataset.is_multi_label and not dataset.images_per_class().any():
            raise RefusedInput(
                f"none of the {dataset.num_images} {part} images of {dataset.folder} is known to "
                f"show any class; {remedy}"
            )


def validation_rows(dataset: ShardedDataset, fraction: float) -> np.ndarray:
    """Index rows of the images that are held out, ascending.

    A fixed permutation of the source's order is cut at `fraction`: the official lists are sorted by
    class, so their literal last part would hold few classes (docs/decisions/0010).

    Raises:
        RefusedInput: Nothing would be left to train on.
    """
    count = max(1, round(fraction * dataset.num_images))
    if count >= dataset.num_images:
        raise RefusedInput(
            f"{dataset.folder}: validation_fraction = {fraction} of {dataset.num_images} images "
            "leaves none to train on; lower it"
        )
    in_source_order = np.argsort(dataset.source_row, kind="stable")
    permutation = stable_permutation(dataset.num_images, "validation-part")
    return np.sort(in_source_order[permutation[-count:]])
