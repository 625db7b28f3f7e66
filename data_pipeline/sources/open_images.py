"""OpenImages V6 and V7: images with verified labels, from folders or from the archives.

Beside `train_0.tar.gz` ... `train_f.tar.gz`, `validation.tar.gz`, `test.tar.gz` (or the folders
that they unpack to) lie the CSV files of classes and image-level labels, named as on the site.

Source: https://storage.googleapis.com/openimages/web/ (Kuznetsova et al. 2020).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from configs.errors import RefusedInput
from data_pipeline.label_sets import LabelSet
from data_pipeline.sources.archives import reading_archive
from data_pipeline.sources.class_list import read_class_list
from data_pipeline.sources.input_files import InputFile, InputFolder
from data_pipeline.sources.stream_source import StreamedImage, files_fingerprint
from data_pipeline.sources.verified_labels import VerifiedLabels, read_verified_labels

_GET = "give the folder that holds the images and the CSV files of OpenImages as downloaded"
# The site calls one split both ways.
_NAMES_OF_SPLIT = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


@dataclass
class OpenImagesSource:
    """The labelled images of a split; those of which nothing is known are passed over.

    `images` are archives, or folders on this machine.
    """

    split: str
    classes: tuple[str, ...]
    images: list[InputFile | Path]
    labels: VerifiedLabels
    lists: list[InputFile]
    facts: dict[str, Any]
    name: str = "open-images"
    num_images: int | None = None
    _num_passed_over: int = field(default=0)

    @property
    def num_bytes(self) -> int:
        """Size of the archives, or of the files in the folders."""
        return sum(file.num_bytes for file in self._files())

    def stream(self, start: int = 0) -> Iterator[StreamedImage]:
        """Images archive by archive, or folder by folder, in the order of their names."""
        return islice(self._images(), start, None)

    def _images(self) -> Iterator[StreamedImage]:
        self._num_passed_over = 0
        for place in self.images:
            if isinstance(place, Path):
                yield from self._of_folder(place)
            else:
                yield from self._of_archive(place)

    def fingerprint(self) -> str:
        """Identity of the images' and the lists' names and sizes, and of the classes."""
        return files_fingerprint([*self._files(), *self.lists], self.classes)

    def options(self) -> dict[str, Any]:
        """The lists that were read."""
        return self.facts

    def notices(self) -> list[str]:
        """Images that were passed over."""
        if not self._num_passed_over:
            return []
        return [f"passed over {self._num_passed_over:,} images without a label of these classes"]

    def _files(self) -> Iterator[InputFile]:
        for place in self.images:
            if isinstance(place, InputFile):
                yield place
            else:
                yield from map(InputFile.at, sorted(place.iterdir()))

    def _of_archive(self, archive: InputFile) -> Iterator[StreamedImage]:
        with reading_archive(archive) as members:
            for member in members:
                labels = self._labels_of(PurePosixPath(member.name).stem)
                if labels is not None:
                    yield StreamedImage(labels, f"{archive}: {member.name}", member.read)

    def _of_folder(self, folder: Path) -> Iterator[StreamedImage]:
        for path in sorted(folder.iterdir()):
            labels = self._labels_of(path.stem)
            if labels is not None:
                yield StreamedImage(labels, str(path), path.read_bytes)

    def _labels_of(self, image_id: str) -> LabelSet | None:
        labels = self.labels.of_image(image_id)
        self._num_passed_over += labels is None
        return labels


def read_open_images(
    place: Path | str,
    split: str,
    *,
    classes: Path | None = None,
    machine_confidence: float | None = None,
) -> OpenImagesSource:
    """Open a split, in a folder or below a URL.

    Classes are those of `classes`, else of the list of trainable classes, else all. Labels that
    people verified are always read; those of the classifier only with a `machine_confidence`, from
    which on they count as positive.

    Raises:
        RefusedInput: A file is missing or damaged, or a class has no description.
    """
    if isinstance(place, Path) and not place.is_dir():
        raise RefusedInput(f"--input {place} is not a folder; {_GET}")
    if machine_confidence is not None and not 0 < machine_confidence <= 1:
        raise RefusedInput(f"--machine-confidence {machine_confidence}: give a number in 0..1")
    folder = InputFolder(place)
    descriptions = _one(folder, "*class-descriptions.csv")
    class_list = classes or next(iter(folder.matching("*classes-trainable.txt")), None)
    names = _class_names(descriptions, class_list)
    human = _label_files(folder, split, "human")
    machine = [] if machine_confidence is None else _label_files(folder, split, "machine")
    return OpenImagesSource(
        split=split,
        classes=tuple(f"{mid} {name}".strip() for mid, name in names.items()),
        images=_image_places(folder, split),
        labels=read_verified_labels(human, machine, list(names), machine_confidence or 1.0),
        lists=[descriptions, *human, *machine],
        facts={
            "class_list": None if class_list is None else class_list.name,
            "machine_confidence": machine_confidence,
        },
    )


def _one(folder: InputFolder, pattern: str) -> InputFile:
    found = folder.matching(pattern)
    if len(found) != 1:
        problem = "is missing" if not found else f"fits {found[0].name} and {found[1].name}"
        raise RefusedInput(f"{folder.place}/{pattern} {problem}; {_GET}")
    return found[0]


def _class_names(descriptions: InputFile, class_list: Path | InputFile | None) -> dict[str, str]:
    """Display names by identifier, in the order of the list, else of the descriptions."""
    try:
        with descriptions.open() as raw, io.TextIOWrapper(raw, "utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise RefusedInput(f"{descriptions} cannot be read: {error}") from error
    wrong = next((number for number, row in enumerate(rows, start=1) if len(row) != 2), None)
    if wrong is not None:
        raise RefusedInput(f"{descriptions}, line {wrong}: expected an identifier and a name")
    # Only the newer files have a header.
    names = {mid: name for mid, name in rows if mid != "LabelName"}
    if class_list is None:
        return names
    wanted = list(read_class_list(class_list))
    unknown = [mid for mid in wanted if mid not in names]
    if unknown:
        raise RefusedInput(
            f"{class_list} names {unknown[0]} ({len(unknown)} such), which {descriptions} does not "
            "describe"
        )
    return {mid: names[mid] for mid in wanted}


def _label_files(folder: InputFolder, split: str, kind: str) -> list[InputFile]:
    patterns = [f"*{name}-annotations-{kind}-imagelabels.csv" for name in _NAMES_OF_SPLIT[split]]
    found = {str(file): file for pattern in patterns for file in folder.matching(pattern)}
    if not found:
        raise RefusedInput(f"{folder.place}/{patterns[0]} is missing; {_GET}")
    return [found[name] for name in sorted(found)]


def _image_places(folder: InputFolder, split: str) -> list[InputFile | Path]:
    """Archives of the split if there are any, else folders on this machine."""
    for pattern in (f"{split}_[0-9a-f]", split):
        found: list[InputFile | Path] = [*folder.matching(f"{pattern}.tar.gz")]
        if found:
            return found
    missing = f"{folder.place}/{split}.tar.gz is missing, and so are {split}_0.tar.gz"
    if not isinstance(folder.place, Path):
        raise RefusedInput(f"{missing} ...; {_GET}")
    for pattern in (f"{split}_[0-9a-f]", split):
        found = [path for path in sorted(folder.place.glob(pattern)) if path.is_dir()]
        if found:
            return found
    raise RefusedInput(f"{missing}, {split}_0/ and {split}/; {_GET}")
