"""Images in a folder per class: `INPUT/SPLIT/CLASS/...`, or `INPUT/CLASS/...` without splits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from configs.errors import RefusedInput
from data_pipeline.sources.source import FileSource

_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
_LAYOUT = "expected INPUT/SPLIT/CLASS/images, or INPUT/CLASS/images where there are no splits"


def read_image_folder(input_folder: Path, split: str) -> FileSource:
    """List every file below the class folders, classes sorted by name, then by path.

    Classes are numbered by the folders of `INPUT/train` where that exists, so that every split has
    the same numbers even if it lacks a class. Files that are no images are found, and reported, by
    the writer.

    Raises:
        RefusedInput: There is no such folder, no class in it, or a class that training lacks.
    """
    if not input_folder.is_dir():
        raise RefusedInput(f"--input {input_folder} is not a folder; {_LAYOUT}")
    split_folder = _split_folder(input_folder, split)
    present = _subfolders(split_folder)
    if not present:
        raise RefusedInput(f"{split_folder} holds no class folders; {_LAYOUT}")
    train_folder = input_folder / "train"
    classes = present
    if split_folder != input_folder and train_folder.is_dir():
        classes = _subfolders(train_folder)
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise RefusedInput(
                f"{split_folder / unknown[0]}: class '{unknown[0]}' ({len(unknown)} such) is not "
                f"in {train_folder}, which numbers the classes; rename or remove the folder"
            )
    numbers = {name: number for number, name in enumerate(classes)}
    files: list[str] = []
    labels: list[int] = []
    for name in present:
        found = _files_below(split_folder, name)
        files += found
        labels += [numbers[name]] * len(found)
    return FileSource(
        name=input_folder.resolve().name,
        split=split,
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        root=split_folder,
        files=files,
    )


def _split_folder(input_folder: Path, split: str) -> Path:
    if (input_folder / split).is_dir():
        return input_folder / split
    splits = [name for name in _SPLIT_FOLDERS if (input_folder / name).is_dir()]
    if splits:
        raise RefusedInput(
            f"--split {split}: {input_folder / split} does not exist; "
            f"{input_folder} has the splits {', '.join(splits)}"
        )
    return input_folder


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _files_below(folder: Path, name: str) -> list[str]:
    """Files below `folder/name` at any depth, relative to `folder`, a folder's own files first."""
    found: list[str] = []
    for parent, _, names in sorted(os.walk(folder / name, followlinks=True)):
        relative = os.path.relpath(parent, folder)
        found += [f"{relative}/{file}" for file in sorted(names)]
    return found
