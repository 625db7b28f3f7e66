"""Writes a damaged shard anew, without the samples that are lost."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.dataset import ShardedDataset
from data_pipeline.manifest import ShardEntry
from data_pipeline.shard_damage import TAR_BLOCK_BYTES, place_of


def write_repaired(
    dataset: ShardedDataset, number: int, rows: Sequence[int], path: Path
) -> tuple[ShardEntry, list[int]]:
    """Copy the samples of some rows, block by block as they are, into a new tar at `path`.

    A shard of which no sample is lost comes out as it once was, byte for byte.

    Returns:
        The shard's entry for the manifest, under its old name, and the new offset of each image.

    Raises:
        OSError: A file cannot be read or written.
    """
    digest, offsets, num_bytes = hashlib.sha256(), [], 0
    with open(dataset.shard_path(number), "rb") as old, open(path, "wb") as new:
        for row in rows:
            place = place_of(dataset, row)
            sample = os.pread(old.fileno(), place.end - place.start, place.start)
            assert len(sample) == place.end - place.start, "examine_shard has read it all"
            sample += bytes(-len(sample) % TAR_BLOCK_BYTES)
            offsets.append(num_bytes + place.image - place.start)
            num_bytes += len(sample)
            digest.update(sample)
            new.write(sample)
        end = bytes(2 * TAR_BLOCK_BYTES)
        end += bytes(-(num_bytes + len(end)) % tarfile.RECORDSIZE)
        digest.update(end)
        new.write(end)
        new.flush()
        os.fsync(new.fileno())
    name = dataset.manifest.shards[number].path
    entry = ShardEntry(name, len(offsets), num_bytes + len(end), digest.hexdigest())
    return entry, offsets
