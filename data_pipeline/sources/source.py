"""What a source gives the shard writer: classes, labels, and images that are read when needed.

A source is listed once, in the main process; worker processes get only the pending images of the
shard that they write, so a list of millions of files is never copied whole.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput

PNG_OVERHEAD_BYTES = 1024
# One text of millions of paths would take as much memory again as the listing.
_NAMES_HASHED_AT_ONCE = 65_536


class PendingImage(Protocol):
    """An image that was listed and not read yet; small, and sent between processes."""

    @property
    def where(self) -> str:
        """Where it comes from, for reports: a file, or a place in an array."""

    def read(self) -> bytes:
        """The encoded image file. Raises OSError when it cannot be read."""


class Source(Protocol):
    """A dataset in its own order; a row is the running number of an image in that order."""

    name: str
    split: str
    classes: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers, shape (num_images,)."""

    def images(self, rows: NDArray[np.int64]) -> Sequence[PendingImage]:
        """The images of some rows."""

    def size_bounds(self) -> NDArray[np.int64]:
        """Bytes that each image file takes at most, shape (num_images,); exact for files."""

    def fingerprint(self) -> str:
        """Identity of the listing (hex): two sources with the same one would build the same."""

    def options(self) -> dict[str, Any]:
        """What else the manifest should say about how the images came to be."""


@dataclass(frozen=True)
class ImageFile:
    """An image file on disk; its bytes are taken as they are."""

    path: str

    @property
    def where(self) -> str:
        """Path of the file."""
        return self.path

    def read(self) -> bytes:
        """Bytes of the file."""
        with open(self.path, "rb", buffering=0) as file:  # a buffer would only be copied
            return file.read()


@dataclass
class FileSource:
    """Images that lie in files; `files` are relative to `root`, in the source's own order."""

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    root: Path
    files: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty listing, which is always a wrong folder."""
        if not self.files:
            raise RefusedInput(f"{self.root}: split '{self.split}' of {self.name} holds no files")

    def images(self, rows: NDArray[np.int64]) -> list[ImageFile]:
        """The files of some rows."""
        return [ImageFile(f"{self.root}/{self.files[row]}") for row in rows.tolist()]

    def size_bounds(self) -> NDArray[np.int64]:
        """Sizes of the files in bytes; a file that is missing counts as empty."""
        return np.array([_file_size(self.root / name) for name in self.files], dtype=np.int64)

    def fingerprint(self) -> str:
        """Identity of file names, labels and classes, not of what the files hold."""
        digest = hashlib.sha256("\0".join([*self.classes, "", ""]).encode())
        for start in range(0, len(self.files), _NAMES_HASHED_AT_ONCE):
            if start:
                digest.update(b"\0")
            digest.update("\0".join(self.files[start : start + _NAMES_HASHED_AT_ONCE]).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def options(self) -> dict[str, Any]:
        """Facts that the reader wants recorded."""
        return self.facts


@dataclass(frozen=True)
class ArrayImage:
    """One image of an array, shape (H, W) or (H, W, 3), uint8."""

    where: str
    pixels: NDArray[np.uint8]

    def read(self) -> bytes:
        """The pixels as a PNG file."""
        return encode_image(self.pixels, "PNG")


@dataclass
class ArraySource:
    """Images that come as one array, shape (N, H, W) or (N, H, W, 3), uint8; stored as PNG."""

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    pixels: NDArray[np.uint8]

    def images(self, rows: NDArray[np.int64]) -> list[ArrayImage]:
        """Copies of the pixels of some rows."""
        return [
            ArrayImage(f"{self.name} {self.split} image {row}", self.pixels[row])
            for row in rows.tolist()
        ]

    def size_bounds(self) -> NDArray[np.int64]:
        """Sizes of the raw pixels, which PNG does not exceed by more than its overhead."""
        largest = self.pixels[0].nbytes * 102 // 100 + PNG_OVERHEAD_BYTES
        return np.full(len(self.labels), largest, dtype=np.int64)

    def fingerprint(self) -> str:
        """Identity of pixels, labels and classes."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self.pixels.tobytes())
        return digest.hexdigest()

    def options(self) -> dict[str, Any]:
        """Nothing beyond name and split."""
        return {}


def encode_image(pixels: NDArray[np.uint8], image_format: str, **options: Any) -> bytes:
    """Encode an image of shape (H, W) or (H, W, 3), uint8, as "PNG" or "JPEG"."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def find_layout(input_folder: Path, official_folder: str, needed: Sequence[str], get: str) -> Path:
    """The folder that holds every needed file: `input_folder`, or the official folder in it.

    Raises:
        RefusedInput: Neither does; the message names the first file that is missing and says with
            `get` where the dataset comes from.
    """
    if not input_folder.is_dir():
        raise RefusedInput(f"--input {input_folder} is not a folder; {get}")
    inside = input_folder / official_folder
    for folder in (input_folder, inside):
        if all((folder / name).exists() for name in needed):
            return folder
    looked_at = inside if inside.is_dir() else input_folder
    missing = next(name for name in needed if not (looked_at / name).exists())
    also = "" if inside.is_dir() else f" and there is no {inside}"
    raise RefusedInput(f"{looked_at / missing} is missing{also}; {get}")


def read_text_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank.

    Raises:
        RefusedInput: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RefusedInput(f"{path} cannot be read: {error}") from error
    return [line for line in text.splitlines() if line.strip()]


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
