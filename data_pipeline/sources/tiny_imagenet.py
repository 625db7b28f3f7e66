"""Tiny-ImageNet-200 in its official layout; any image size.

Source: https://cs231n.stanford.edu/tiny-imagenet-200.zip (Stanford CS231n).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from configs.errors import RefusedInput
from data_pipeline.sources.source import FileSource, find_layout, read_text_lines

_FOLDER = "tiny-imagenet-200"
_GET = "give the folder that tiny-imagenet-200.zip unpacks to"


def read_tiny_imagenet(input_folder: Path, split: str) -> FileSource:
    """List `train` (sorted by class, then name) or `val` (in the order of its annotations).

    Classes are the sorted WordNet ids of `wnids.txt`, each followed by its words.

    Raises:
        RefusedInput: A file of the layout is missing or says something impossible.
    """
    of_split = ("train",) if split == "train" else ("val/images", "val/val_annotations.txt")
    root = find_layout(input_folder, _FOLDER, ("wnids.txt", "words.txt", *of_split), _GET)
    wnids = sorted(line.strip() for line in read_text_lines(root / "wnids.txt"))
    words = dict(
        line.split("\t", 1) for line in read_text_lines(root / "words.txt") if "\t" in line
    )
    files, labels = _train(root, wnids) if split == "train" else _validation(root, wnids)
    return FileSource(
        name="tiny-imagenet",
        split=split,
        classes=tuple(f"{wnid} {words.get(wnid, '')}".strip() for wnid in wnids),
        labels=np.array(labels, dtype=np.int64),
        root=root,
        files=files,
    )


def _train(root: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    files: list[str] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        if not folder.is_dir():
            raise RefusedInput(f"{folder} is missing, and wnids.txt names {wnid}; {_GET}")
        names = sorted(os.listdir(folder))
        files += [f"train/{wnid}/images/{name}" for name in names]
        labels += [label] * len(names)
    return files, labels


def _validation(root: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    path = root / "val" / "val_annotations.txt"
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    files: list[str] = []
    labels: list[int] = []
    for line_number, line in enumerate(read_text_lines(path), start=1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in numbers:
            raise RefusedInput(
                f"{path}, line {line_number}: {line!r} should be a file name, a tab and an id of "
                f"{root / 'wnids.txt'}"
            )
        files.append(f"val/images/{name}")
        labels.append(numbers[rest[0]])
    return files, labels
