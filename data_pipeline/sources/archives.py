"""Members of tar archives, also of tars inside tars, without unpacking anything to disk.

A plain tar is listed by its headers and its files are then read by (offset, size), in any order.
A compressed one can only be read from its beginning to its end.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.sources.input_files import InputFile
from data_pipeline.sources.stream_source import kind_of_fault
from data_pipeline.tar_headers import StrictHeader

_BUFFER_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_DAMAGE = (tarfile.TarError, EOFError, zlib.error)


@dataclass(frozen=True)
class Place:
    """A file inside an archive: its name there, and where its bytes lie in the archive's own."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ArchivedImage:
    """An image file inside a plain tar; its bytes are taken as they are."""

    archive: str
    place: Place

    @property
    def where(self) -> str:
        """Archive and name of the member."""
        return f"{self.archive}: {self.place.name}"

    def read(self) -> bytes:
        """Bytes of the member; raises OSError where the archive is shorter than it was."""
        with open(self.archive, "rb") as file:
            file.seek(self.place.offset)
            data = file.read(self.place.size)
        if len(data) < self.place.size:
            raise OSError(f"the archive ends within the file, after {len(data)} bytes")
        return data


@dataclass
class ArchiveSource:
    """Images that lie in one plain tar, in the source's own order."""

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    archive: Path
    places: list[Place]
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty listing, which is always a wrong archive."""
        if not self.places:
            raise RefusedInput(f"{self.archive} holds no images of split '{self.split}'")

    def images(self, rows: NDArray[np.int64]) -> list[ArchivedImage]:
        """The members of some rows."""
        return [ArchivedImage(str(self.archive), self.places[row]) for row in rows.tolist()]

    def size_bounds(self) -> NDArray[np.int64]:
        """Sizes of the members in bytes."""
        return np.array([place.size for place in self.places], dtype=np.int64)

    def fingerprint(self) -> str:
        """Identity of names, sizes, labels and classes, not of what the files hold."""
        listing = [f"{place.name} {place.size}" for place in self.places]
        digest = hashlib.sha256("\0".join([*self.classes, "", *listing]).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def options(self) -> dict[str, Any]:
        """Facts that the reader wants recorded."""
        return self.facts


def list_archive(path: Path, inside: Place | None = None) -> list[Place]:
    """The regular files of a plain tar in its order; reads headers only.

    Args:
        path: The archive.
        inside: A member that is a plain tar itself and is to be listed instead; places still count
            from the beginning of the outer archive.

    Raises:
        RefusedInput: It cannot be read, is compressed, cut short or no tar.
    """
    name = str(path) if inside is None else f"{path}: {inside.name}"
    prefix = "" if inside is None else f"{inside.name}/"
    places = []
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2) if inside is None else inside.offset + inside.size
            file.seek(0 if inside is None else inside.offset)
            # "r:" takes no compression; tarfile counts from where the file stands.
            with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictHeader) as tar:
                while (member := tar.next()) is not None:
                    vars(tar)["members"].clear()  # tarfile keeps every header it has seen
                    if member.isreg():
                        places.append(Place(prefix + member.name, member.offset_data, member.size))
                if tar.offset >= end:  # an inner tar without an end runs on into what follows it
                    raise tarfile.ReadError("the blocks that end an archive are missing")
    except (OSError, *_DAMAGE) as error:
        raise RefusedInput(
            f"{name} is not a plain, complete tar file: {error}; get it anew"
        ) from error
    return places


@dataclass(frozen=True)
class StreamedMember:
    """A regular file of a tar that is being read; good until the next one is asked for.

    It can be read once, from front to back, or not at all: then its bytes are passed over, without
    reading them where the archive is not compressed.
    """

    name: str
    file: IO[bytes]
    archive: str
    can_seek: bool

    def read(self) -> bytes:
        """Its bytes; raises RefusedInput (see `reading_archive`)."""
        with _naming(self.archive):
            return self.file.read()

    def members(self) -> Iterator[StreamedMember]:
        """The regular files of a plain tar that it is; raises RefusedInput as well."""
        with _naming(self.archive):
            yield from _members(self.file, self.archive, self.can_seek)


@contextmanager
def reading_archive(archive: InputFile) -> Iterator[Iterator[StreamedMember]]:
    """Read a tar, plain or gzipped, from front to back; gives its regular files in their order.

    Raises:
        DamagedSource: It is cut short, damaged or no tar; also while its members, or tars among
            them, are being read.
        RefusedInput: It cannot be read now.
    """
    where = str(archive)
    with _naming(where), archive.open() as raw:
        is_gzipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if is_gzipped:
            with gzip.GzipFile(fileobj=raw) as file:
                yield _members(file, where, can_seek=False)
        else:
            yield _members(raw, where, can_seek=True)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn what reading an archive raises into errors that name it."""
    try:
        yield
    except (OSError, *_DAMAGE) as error:
        raise kind_of_fault(error)(
            f"{where} is cut short, damaged or not a tar file: {error}; get it anew"
        ) from error


def _members(
    file: IO[bytes] | gzip.GzipFile, where: str, can_seek: bool
) -> Iterator[StreamedMember]:
    """Regular files of a tar, whole; raises tarfile.ReadError if it ends before its end."""
    mode: Any = "r:" if can_seek else "r|"
    with tarfile.open(fileobj=file, mode=mode, bufsize=_BUFFER_BYTES, tarinfo=StrictHeader) as tar:
        while (member := tar.next()) is not None:
            vars(tar)["members"].clear()
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None, "a regular file has content"
                yield StreamedMember(member.name, content, where, can_seek)
    while not can_seek and file.read(_BUFFER_BYTES):  # gzip's checksum is at the very end
        pass
