"""Sources that can only be read from front to back: compressed archives, parquet files.

Such a source is never listed. Its images are read once, in its own order, and the writer sends each
to its shard as it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from configs.errors import RefusedInput
from data_pipeline.label_sets import LabelSet
from data_pipeline.sources.input_files import InputFile


class DamagedSource(RefusedInput):
    """A file of the source is not what it should be, so what was read of it may be wrong too."""


def kind_of_fault(error: Exception) -> type[RefusedInput]:
    """What to raise for an error met in a file: the operating system numbers its own errors.

    Those may pass; all others are about the bytes.
    """
    is_of_system = isinstance(error, OSError) and error.errno is not None
    return RefusedInput if is_of_system else DamagedSource


@dataclass(frozen=True)
class StreamedImage:
    """An image of a stream: its class number or label set, and how to get its file.

    `read` gives the encoded image file, or raises OSError, which says why there is none. It is
    called before the next image is asked for, or not at all; then nothing is decoded or copied.
    """

    label: int | LabelSet
    where: str
    read: Callable[[], bytes]


@runtime_checkable
class StreamSource(Protocol):
    """A dataset that is read once, in its own order."""

    name: str
    split: str
    classes: tuple[str, ...]

    @property
    def num_images(self) -> int | None:
        """Number of images; None where only reading would tell."""

    @property
    def num_bytes(self) -> int:
        """Size of its files."""

    def stream(self, start: int = 0) -> Iterator[StreamedImage]:
        """Images from number `start` on, in the source's own order.

        Raises:
            DamagedSource: A file is damaged; here or where an image is read.
            RefusedInput: A file cannot be read now.
        """

    def fingerprint(self) -> str:
        """Identity of the files (hex): two sources with the same one would build the same."""

    def options(self) -> dict[str, Any]:
        """What else the manifest should say about how the images came to be."""

    def notices(self) -> list[str]:
        """What the user should know after the stream was read; sentences."""


def files_fingerprint(files: Sequence[InputFile], classes: Sequence[str]) -> str:
    """Identity of names and sizes of files and of class names, not of what the files hold."""
    listing = [f"{file.name} {file.num_bytes}" for file in files]
    return hashlib.sha256("\0".join([*classes, "", *listing]).encode()).hexdigest()
