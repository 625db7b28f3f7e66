"""The development kit of ILSVRC2012: names of the classes, labels of the validation images.

Read from `ILSVRC2012_devkit_t12.tar.gz` as it was downloaded, or from the folder it unpacks to.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.sources.archives import reading_archive
from data_pipeline.sources.input_files import InputFile

DEVKIT = "ILSVRC2012_devkit_t12"
_META = f"{DEVKIT}/data/meta.mat"
_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """What the kit says.

    Attributes:
        wnids: WordNet ids of the leaf classes, sorted: the numbering that torchvision, timm and
            published weights use.
        classes: Each id with its words, in the same order.
        validation_labels: Class numbers of the validation images in the order of their names,
            shape (num_images,).
    """

    wnids: tuple[str, ...]
    classes: tuple[str, ...]
    validation_labels: NDArray[np.int64]


def read_devkit(folder: Path) -> Devkit:
    """Read the kit in `folder`, packed or unpacked.

    Raises:
        RefusedInput: It is missing, damaged, or its parts do not fit together.
    """
    files = _files(folder)
    words = _leaf_classes(files[_META], folder / _META)
    wnids = tuple(sorted(wnid for wnid, _ in words.values()))
    text_of = dict(words.values())
    number_of_id = {kit_id: wnids.index(wnid) for kit_id, (wnid, _) in words.items()}
    path = folder / _TRUTH
    labels = []
    for line_number, line in enumerate(files[_TRUTH].decode(errors="replace").split(), start=1):
        if not line.isdecimal() or int(line) not in number_of_id:
            raise RefusedInput(
                f"{path}, line {line_number}: {line!r} is not the ILSVRC2012_ID of a class; "
                f"get {DEVKIT}.tar.gz anew"
            )
        labels.append(number_of_id[int(line)])
    return Devkit(
        wnids=wnids,
        classes=tuple(f"{wnid} {text_of[wnid]}".strip() for wnid in wnids),
        validation_labels=np.array(labels, dtype=np.int64),
    )


def _files(folder: Path) -> dict[str, bytes]:
    """Both files of the kit by their names in it."""
    wanted = (_META, _TRUTH)
    if all((folder / name).is_file() for name in wanted):
        return {name: (folder / name).read_bytes() for name in wanted}
    archive = folder / f"{DEVKIT}.tar.gz"
    if not archive.is_file():
        raise RefusedInput(
            f"{archive} is missing and so is {folder / _META}; put the development kit (tasks 1 "
            "and 2) beside the images, packed or unpacked: it names the classes"
        )
    with reading_archive(InputFile.at(archive)) as members:
        files = {member.name: member.read() for member in members if member.name in wanted}
    for name in wanted:
        if name not in files:
            raise RefusedInput(f"{archive} holds no {name}; get it anew")
    return files


def _leaf_classes(data: bytes, path: Path) -> dict[int, tuple[str, str]]:
    """From ILSVRC2012_ID to (WordNet id, words); classes with children are no labels."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = np.atleast_1d(synsets)
        leaves = rows[rows["num_children"] == 0]
        return {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in leaves}
    except Exception as error:  # scipy and numpy raise many kinds for what is not this file
        raise RefusedInput(
            f"{path} is not the list of classes ({error}); get {DEVKIT}.tar.gz anew"
        ) from error
