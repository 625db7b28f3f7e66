"""ImageNet-1k (ILSVRC2012) from its archives as they were downloaded, nothing unpacked.

`ILSVRC2012_img_train.tar` holds a plain tar of each class, `ILSVRC2012_img_val.tar` the images
alone; their labels and the names of the classes come from the development kit beside them.

Source: https://image-net.org/challenges/LSVRC/2012/ (Russakovsky et al. 2015).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.errors import RefusedInput
from data_pipeline.sources.archives import ArchiveSource, Place, list_archive
from data_pipeline.sources.imagenet_devkit import Devkit, read_devkit
from data_pipeline.sources.source import find_layout

_FOLDER = "imagenet"
_GET = "give the folder that holds the archives of ILSVRC2012 as they were downloaded"
_TRAIN = "ILSVRC2012_img_train.tar"
_VALIDATION = "ILSVRC2012_img_val.tar"


def read_imagenet1k(input_folder: Path, split: str) -> ArchiveSource:
    """List `train` (sorted by class, then name) or `val` (by name); always all classes of the kit.

    Raises:
        RefusedInput: An archive is missing or damaged, or does not fit the development kit.
    """
    archive_name = _TRAIN if split == "train" else _VALIDATION
    root = find_layout(input_folder, _FOLDER, (archive_name,), _GET)
    devkit = read_devkit(root)
    archive = root / archive_name
    places, labels = (_train if split == "train" else _validation)(archive, devkit)
    return ArchiveSource(
        name="imagenet-1k",
        split=split,
        classes=devkit.classes,
        labels=np.array(labels, dtype=np.int64),
        archive=archive,
        places=places,
    )


def _train(archive: Path, devkit: Devkit) -> tuple[list[Place], list[int]]:
    number_of = {wnid: number for number, wnid in enumerate(devkit.wnids)}
    inner = sorted(list_archive(archive), key=lambda place: place.name)
    places: list[Place] = []
    labels: list[int] = []
    for tar in inner:
        wnid = Path(tar.name).stem
        if wnid not in number_of:
            raise RefusedInput(
                f"{archive}: {tar.name} is of no class of the development kit, which has "
                f"{len(devkit.wnids)}; get both for ILSVRC2012, tasks 1 and 2"
            )
        found = sorted(list_archive(archive, inside=tar), key=lambda place: place.name)
        places += found
        labels += [number_of[wnid]] * len(found)
    missing = sorted(set(devkit.wnids) - {Path(tar.name).stem for tar in inner})
    if missing:
        raise RefusedInput(
            f"{archive} lacks {missing[0]}.tar ({len(missing)} such classes of the development "
            "kit); get it anew"
        )
    return places, labels


def _validation(archive: Path, devkit: Devkit) -> tuple[list[Place], list[int]]:
    places = sorted(list_archive(archive), key=lambda place: place.name)
    labels = devkit.validation_labels.tolist()
    if len(places) != len(labels):
        raise RefusedInput(
            f"{archive} holds {len(places)} images, the development kit labels {len(labels)}; get "
            "both anew"
        )
    return places, labels
