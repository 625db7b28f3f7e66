"""What is wrong with a shard, and which of its samples are still sound."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from configs.data_groups import LoaderConfig
from data_pipeline.broken import BrokenImage, BrokenRecord
from data_pipeline.dataset import ShardedDataset
from data_pipeline.manifest import file_sha256

TAR_BLOCK_BYTES = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class SamplePlace:
    """Where a sample of our own shards lies: its label's member from `start`, then its image."""

    start: int
    image: int
    end: int


@dataclass(frozen=True)
class ShardDamage:
    """What examining one shard found.

    `problem` is about the file as a whole, "" if it is the one that the manifest describes; `lost`
    are the images that cannot be used, by ascending row.
    """

    number: int
    problem: str
    lost: tuple[BrokenRecord, ...]

    @property
    def is_sound(self) -> bool:
        """Whether there is nothing to repair."""
        return not self.problem and not self.lost


def rows_of(dataset: ShardedDataset, number: int) -> range:
    """Rows of the index that lie in a shard."""
    first, end = np.searchsorted(dataset.shard, [number, number + 1]).tolist()
    return range(first, end)


def place_of(dataset: ShardedDataset, row: int) -> SamplePlace:
    """Where the sample of a row lies; it begins where the one before it ends."""
    is_first = row == 0 or dataset.shard[row - 1] != dataset.shard[row]
    image = int(dataset.offset[row])
    start = 0 if is_first else _padded(int(dataset.offset[row - 1]) + int(dataset.size[row - 1]))
    return SamplePlace(start, image, image + int(dataset.size[row]))


def examine_shard(dataset: ShardedDataset, number: int) -> ShardDamage:
    """Compare a shard with manifest and index, and decode all of its images."""
    entry, path = dataset.manifest.shards[number], dataset.shard_path(number)
    problem = _problem_of_file(path, entry.num_bytes, entry.sha256)
    lost = []
    try:
        file = open(path, "rb")
    except OSError as error:
        problem = problem or f"it cannot be opened: {error.strerror}"
        return ShardDamage(number, problem, tuple(_all_lost(dataset, number, problem)))
    with file:
        for row in rows_of(dataset, number):
            reason = _why_lost(dataset, row, file)
            if reason:
                lost.append(BrokenRecord(row, entry.path, dataset.key(row), reason))
    return ShardDamage(number, problem, tuple(lost))


def _problem_of_file(path: Path, num_bytes: int, sha256: str) -> str:
    if not path.is_file():
        return "the file is missing"
    try:
        found = path.stat().st_size
        if found != num_bytes:
            return f"it has {found} bytes, manifest.json says {num_bytes}"
        if file_sha256(path) != sha256:
            return "its SHA-256 is not the one in manifest.json"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return ""


def _all_lost(dataset: ShardedDataset, number: int, reason: str) -> list[BrokenRecord]:
    shard = dataset.manifest.shards[number].path
    return [BrokenRecord(row, shard, dataset.key(row), reason) for row in rows_of(dataset, number)]


def _why_lost(dataset: ShardedDataset, row: int, file: IO[bytes]) -> str:
    """Why the sample of a row cannot be used; "" if it can."""
    from data_pipeline.decode import decode_image  # imports torch

    place = place_of(dataset, row)
    try:
        members = os.pread(file.fileno(), place.image - place.start, place.start)
        image = os.pread(file.fileno(), place.end - place.image, place.image)
    except OSError as error:
        return f"reading it fails: {error.strerror}"
    if len(members) + len(image) < place.end - place.start:
        return "the shard ends before it does"
    problem = _wrong_members(dataset, row, members)
    if problem:
        return problem
    try:
        decode_image(image, max_pixels=LoaderConfig().max_image_pixels)
    except BrokenImage as error:
        return f"it does not decode: {error}"
    return ""


def _wrong_members(dataset: ShardedDataset, row: int, members: bytes) -> str:
    """What is wrong in the blocks before an image: its label's member, then its own header."""
    key, size = dataset.key(row), int(dataset.size[row])
    ending, label = _label_member(dataset, row)
    expected = [(f"{key}.{ending}", len(label)), (f"{key}.{dataset.extension(row)}", size)]
    try:
        headers = [
            tarfile.TarInfo.frombuf(members[place : place + TAR_BLOCK_BYTES], "utf-8", "strict")
            for place in (0, len(members) - TAR_BLOCK_BYTES)
        ]
    except (tarfile.HeaderError, ValueError) as error:
        return f"its entry in the tar is damaged: {error}"
    found = [(header.name, header.size) for header in headers]
    if found != expected:
        return f"the tar has {found} where the index expects {expected}"
    if members[TAR_BLOCK_BYTES : TAR_BLOCK_BYTES + len(label)] != label:
        return "its label in the tar is not the one in the index"
    return ""


def _label_member(dataset: ShardedDataset, row: int) -> tuple[str, bytes]:
    """Ending and content of the member that holds an image's label or label set."""
    if dataset.is_multi_label:
        return "cls.json", dataset.label_sets.of_row(row).as_json()
    return "cls", str(int(dataset.label[row])).encode()


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
