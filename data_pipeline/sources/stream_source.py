"""Sources that can only be read from front to back: compressed archives, parquet files.

Such a source is never listed. Its images are read once, in its own order, and the writer sends each
to its shard as it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from configs.errors import RefusedInput
from data_pipeline.label_sets import LabelSet


@dataclass(frozen=True)
class StreamedImage:
    """An image that was read: its class number or label set and its file, or why there is none.

    `problem` says why the image cannot be used; `data` is empty then.
    """

    label: int | LabelSet
    where: str
    data: bytes
    problem: str = ""

    def read(self) -> bytes:
        """The encoded image file; raises OSError where there is none."""
        if self.problem:
            raise OSError(self.problem)
        return self.data


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

    def stream(self) -> Iterator[StreamedImage]:
        """All images, in the source's own order; raises RefusedInput for a damaged file."""

    def fingerprint(self) -> str:
        """Identity of the files (hex): two sources with the same one would build the same."""

    def options(self) -> dict[str, Any]:
        """What else the manifest should say about how the images came to be."""

    def notices(self) -> list[str]:
        """What the user should know after the stream was read; sentences."""


def files_fingerprint(files: Sequence[Path], classes: Sequence[str]) -> str:
    """Identity of names and sizes of files and of class names, not of what the files hold."""
    listing = [f"{path.name} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\0".join([*classes, "", *listing]).encode()).hexdigest()


def find_files(input_path: Path, patterns: Sequence[str], get: str) -> list[Path]:
    """The input itself if it is a file, else what the first fitting glob pattern finds in it.

    Raises:
        RefusedInput: There is none; the message says with `get` what to give.
    """
    if input_path.is_file():
        return [input_path]
    if not input_path.is_dir():
        raise RefusedInput(f"--input {input_path} is not a folder or a file; {get}")
    for pattern in patterns:
        found = sorted(path for path in input_path.glob(pattern) if path.is_file())
        if found:
            return found
    raise RefusedInput(f"{input_path / patterns[0]} is missing; {get}")
