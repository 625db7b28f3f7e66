"""Writes one shard: a tar of `KEY.jpg` (or png, webp) and `KEY.cls` pairs, and its index rows.

The bytes depend only on the images and their keys, so a dataset is the same for any number of
worker processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from data_pipeline.image_header import EXTENSIONS, ImageHeader, NotAnImage, read_header, to_png
from data_pipeline.index_table import INDEX_SCHEMA
from data_pipeline.sources.source import PendingImage

TAR_BLOCK_BYTES = 512
# A .cls member and the image's header: what a tar holds beside the image itself.
OVERHEAD_BYTES = 3 * TAR_BLOCK_BYTES


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to write one shard."""

    path: Path
    rows: tuple[int, ...]
    labels: tuple[int, ...]
    images: Sequence[PendingImage]


@dataclass(frozen=True)
class SkippedFile:
    """A file that did not get into the shards."""

    where: str
    reason: str


@dataclass(frozen=True)
class WrittenShard:
    """A shard on disk. `table` has the columns of the index, with `shard` still 0."""

    path: Path
    num_images: int
    num_bytes: int
    sha256: str
    table: pa.Table
    skipped: tuple[SkippedFile, ...]
    num_converted: int


@dataclass(frozen=True)
class Member:
    """An image as it goes into the tar."""

    data: bytes
    extension: str
    header: ImageHeader
    was_converted: bool


def write_shard(job: ShardJob) -> WrittenShard:
    """Write the tar at `job.path`; images that cannot be read or are no images are skipped.

    Raises:
        OSError: The tar cannot be written.
    """
    from webdataset import TarWriter  # imports torch

    columns: dict[str, list] = {field.name: [] for field in INDEX_SCHEMA}
    skipped: list[SkippedFile] = []
    num_converted = 0
    with open(job.path, "wb") as file:
        hashed = _HashedFile(file)
        # A whole-second mtime avoids a pax header before every member; a fixed one, and no owner,
        # make the bytes reproducible.
        with TarWriter(hashed, user="", group="", mtime=0, encoder=False) as tar:
            for row, label, image in zip(job.rows, job.labels, job.images, strict=True):
                member = read_member(image, skipped)
                if member is None:
                    continue
                num_converted += member.was_converted
                key = f"{row:09d}"
                tar.write(
                    {"__key__": key, "cls": str(label).encode(), member.extension: member.data}
                )
                # Members go in the order of their extensions: "cls" first, so the image ends here.
                padded = -(-len(member.data) // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
                values = {
                    "shard": 0,
                    "key": key,
                    "extension": member.extension,
                    "offset": tar.tarstream.offset - padded,
                    "size": len(member.data),
                    "label": label,
                    "width": member.header.width,
                    "height": member.header.height,
                    "source_row": row,
                }
                for name, value in values.items():
                    columns[name].append(value)
    return WrittenShard(
        path=job.path,
        num_images=len(columns["key"]),
        num_bytes=hashed.num_bytes,
        sha256=hashed.hexdigest(),
        table=pa.table(columns, schema=INDEX_SCHEMA),
        skipped=tuple(skipped),
        num_converted=num_converted,
    )


def read_member(image: PendingImage, skipped: list[SkippedFile]) -> Member | None:
    """An image as it goes into the tar; None, and a note in `skipped`, if it cannot be used."""
    try:
        data = image.read()
        header = read_header(data)
        if header.format in EXTENSIONS:
            return Member(data, EXTENSIONS[header.format], header, was_converted=False)
        return Member(to_png(data), "png", header, was_converted=True)
    except OSError as error:
        skipped.append(SkippedFile(image.where, error.strerror or str(error)))
    except NotAnImage as error:
        skipped.append(SkippedFile(image.where, str(error)))
    return None


class _HashedFile:
    """A file to write to that digests and counts what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
