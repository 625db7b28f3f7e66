"""The images of a few-shot probe: a few of each class to fit on, all test images to score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import RefusedInput
from configs.few_shot import ProbeConfig
from data_pipeline.index import MANIFEST_FILE, ShardedDataset, open_dataset
from data_pipeline.order import IntArray
from data_pipeline.subset import few_of_each_class

TEST_FOLDERS = ("test", "val", "validation")


@dataclass(frozen=True)
class FewShotImages:
    """What the probes of one task look at.

    Attributes:
        name: Of the task, for metrics.
        train: The images that any of the probes is fit on.
        test: All test images.
        choices: Rows of `train` by (images of each class, seed); with one seed, fewer images are
            among more.
        notice: What was left out, as a sentence, or None.
    """

    name: str
    train: ShardedDataset
    test: ShardedDataset
    choices: dict[tuple[int, int], IntArray]
    notice: str | None = None


def find_task_shards(place: str) -> tuple[Path, Path]:
    """Folders of training and test shards: in PLACE/train and PLACE/test, or PLACE-train, -test.

    Raises:
        RefusedInput: There are no such folders.
    """
    folder = Path(place)
    pairs = [(folder / "train", folder / name) for name in TEST_FOLDERS]
    pairs.append(
        (folder.with_name(f"{folder.name}-train"), folder.with_name(f"{folder.name}-test"))
    )
    for pair in pairs:
        if all((part / MANIFEST_FILE).is_file() for part in pair):
            return pair
    names = " or ".join(f"{name}/" for name in TEST_FOLDERS)
    raise RefusedInput(
        f"few_shot.tasks: {place} has no shards in train/ and {names}, and there is no "
        f"{place}-train with {place}-test; data_pipeline.build writes shards, and so does "
        "finetuning on a task"
    )


def open_few_shot_tasks(places: tuple[str, ...], options: ProbeConfig) -> tuple[FewShotImages, ...]:
    """The tasks that `few_shot.tasks` names, each under the last part of its path.

    Raises:
        RefusedInput: No shards, two tasks of one name, or as for `open_few_shot_images`.
    """
    names = [Path(place).name for place in places]
    for name in names:
        if names.count(name) > 1:
            raise RefusedInput(
                f"few_shot.tasks = {' '.join(places)}: two are called {name!r}, as their metrics "
                "would be; rename a folder, or link to it under another name"
            )
    return tuple(
        open_few_shot_images(name, find_task_shards(place), options)
        for name, place in zip(names, places, strict=True)
    )


def open_few_shot_images(
    name: str, folders: tuple[Path, Path], options: ProbeConfig
) -> FewShotImages:
    """Open training and test shards and choose the images of each probe.

    A choice depends on seed, class and the source's order; not on how the shards were shuffled.

    Raises:
        RefusedInput: Label sets, classes that differ, or a class with fewer images than any probe
            wants.
    """
    whole, test = (open_dataset(folder) for folder in folders)
    for dataset in (whole, test):
        if dataset.is_multi_label:
            raise RefusedInput(
                f"few-shot task {name}: {dataset.place} has label sets; the probe takes one label "
                "an image"
            )
    if whole.classes != test.classes:
        raise RefusedInput(
            f"few-shot task {name}: {whole.place} and {test.place} do not have the same classes"
        )
    possible, notice = _possible_shots(name, whole, options.shots)
    rows = {
        (shots, seed): few_of_each_class(whole, shots, seed)
        for shots in possible
        for seed in options.seeds
    }
    used = np.unique(np.concatenate(list(rows.values())))
    choices = {key: np.searchsorted(used, chosen) for key, chosen in rows.items()}
    return FewShotImages(name, whole.select(used), test, choices, notice)


def _possible_shots(
    name: str, dataset: ShardedDataset, shots: tuple[int, ...]
) -> tuple[list[int], str | None]:
    """The numbers of images that every class has, and what is to be said of the others.

    A probe on fewer images than its name says would be compared with others that had them.
    """
    counts = dataset.images_per_class()
    smallest = int(counts.argmin())
    possible = [number for number in shots if number <= counts[smallest]]
    if len(possible) == len(shots):
        return possible, None
    told = (
        f"few-shot task {name}: class {dataset.classes[smallest]!r} has {counts[smallest]} "
        "training images"
    )
    if not possible:
        raise RefusedInput(
            f"{told}, fewer than any of shots = {' '.join(map(str, shots))}; give smaller ones"
        )
    left_out = " and ".join(str(number) for number in shots if number > counts[smallest])
    return possible, f"{told}: no probe on {left_out} images of each class"
