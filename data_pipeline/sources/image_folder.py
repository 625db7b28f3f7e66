"""Images in a folder per class: `INPUT/SPLIT/CLASS/...`, or `INPUT/CLASS/...` without splits.

`INPUT` is a folder, or a URL whose server can list what lies below it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from configs.errors import RefusedInput
from data_pipeline.sources.remote_files import RemoteSource, list_below, shown_name
from data_pipeline.sources.source import FileSource

_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
_LAYOUT = "expected INPUT/SPLIT/CLASS/images, or INPUT/CLASS/images where there are no splits"


class _Tree(Protocol):
    """Folders and files below `root`; a path in it is relative to that, "" the root itself."""

    @property
    def root(self) -> str:
        """Path or URL, for messages and names."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder, sorted; none if it is not there."""

    def files(self, path: str, name: str) -> list[str]:
        """Files below the folder `name` of `path`, at any depth, relative to `path`, sorted."""

    def readable(self, listed: FileSource, shown: str, path: str) -> FileSource:
        """The source of what was listed in the folder `path`, which `shown` names in full."""


def read_image_folder(input_folder: Path | str, split: str) -> FileSource:
    """List every file below the class folders, classes sorted by name, then by path.

    Classes are numbered by the folders of `INPUT/train` where that exists, so that every split has
    the same numbers even if it lacks a class. Files that are no images are found, and reported, by
    the writer.

    Raises:
        RefusedInput: There is no such folder, no class in it, or a class that training lacks.
    """
    tree = _open_tree(input_folder)
    place = _split_folder(tree, split)
    shown = f"{tree.root}/{place}".rstrip("/")
    present = tree.folders(place)
    if not present:
        raise RefusedInput(f"{shown} holds no class folders; {_LAYOUT}")
    classes = present
    if place and "train" in tree.folders(""):
        classes = tree.folders("train")
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise RefusedInput(
                f"{shown}/{unknown[0]}: class '{unknown[0]}' ({len(unknown)} such) is not "
                f"in {tree.root}/train, which numbers the classes; rename or remove the folder"
            )
    numbers = {name: number for number, name in enumerate(classes)}
    files: list[str] = []
    labels: list[int] = []
    for name in present:
        found = tree.files(place, name)
        files += found
        labels += [numbers[name]] * len(found)
    listed = FileSource(
        name=tree.name,
        split=split,
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        root=Path(shown),
        files=files,
    )
    return tree.readable(listed, shown, place)


def _open_tree(place: Path | str) -> _Tree:
    if "://" in str(place):
        return _RemoteTree.of(str(place))
    if not Path(place).is_dir():
        raise RefusedInput(f"--input {place} is not a folder; {_LAYOUT}")
    return _LocalTree(Path(place))


def _split_folder(tree: _Tree, split: str) -> str:
    top = tree.folders("")
    if split in top:
        return split
    splits = [name for name in _SPLIT_FOLDERS if name in top]
    if splits:
        raise RefusedInput(
            f"--split {split}: {tree.root}/{split} does not exist; "
            f"{tree.root} has the splits {', '.join(splits)}"
        )
    return ""


@dataclass(frozen=True)
class _LocalTree:
    folder: Path

    @property
    def root(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def folders(self, path: str) -> list[str]:
        folder = self.folder / path
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())

    def files(self, path: str, name: str) -> list[str]:
        """Also through links; a folder's own files come first."""
        found: list[str] = []
        base = self.folder / path
        for parent, _, names in sorted(os.walk(base / name, followlinks=True)):
            relative = os.path.relpath(parent, base)
            found += [f"{relative}/{file}" for file in sorted(names)]
        return found

    def readable(self, listed: FileSource, _shown: str, _path: str) -> FileSource:
        return listed


@dataclass(frozen=True)
class _RemoteTree:
    """A listing of everything below a URL; `sizes` by path."""

    root: str
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, url: str) -> _RemoteTree:
        url = url.rstrip("/")
        return cls(url, list_below(url))

    @property
    def name(self) -> str:
        return self.root.rpartition("/")[2]

    @cached_property
    def _files_by_folders(self) -> dict[str, dict[str, list[str]]]:
        """Files by the folder (at most one deep) and the next folder that they lie below."""
        found: dict[str, dict[str, list[str]]] = {"": {}}
        for path in sorted(self.sizes, key=self._order):
            parts = path.split("/")
            for depth in range(min(2, len(parts) - 1)):
                base, name = "/".join(parts[:depth]), parts[depth]
                relative = path[len(base) :].lstrip("/")
                found.setdefault(base, {}).setdefault(name, []).append(relative)
        return found

    def folders(self, path: str) -> list[str]:
        return sorted(self._files_by_folders.get(path, {}), key=self._order)

    def files(self, path: str, name: str) -> list[str]:
        return self._files_by_folders[path][name]

    def _order(self, path: str) -> tuple[str, str]:
        """What sorts names as `_LocalTree` does, so that both number classes and images alike."""
        parent, _, name = shown_name(self.root, path).rpartition("/")
        return parent, name

    def readable(self, listed: FileSource, shown: str, path: str) -> FileSource:
        """The same listing, read through fsspec."""
        paths = [f"{path}/{file}".lstrip("/") for file in listed.files]
        return RemoteSource(
            name=listed.name,
            split=listed.split,
            classes=tuple(shown_name(shown, name) for name in listed.classes),
            labels=listed.labels,
            root=listed.root,
            files=listed.files,
            url=shown,
            sizes=np.array([self.sizes[file] for file in paths], dtype=np.int64),
        )
