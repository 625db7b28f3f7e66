"""Which image goes into which shard: a function of the listing and the options, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.order import stable_permutation
from data_pipeline.prepare_image import ImageRecipe
from data_pipeline.sources.source import Source
from data_pipeline.sources.stream_source import StreamSource
from data_pipeline.tar_writer import END_OF_TAR_BYTES, OVERHEAD_BYTES, TAR_BLOCK_BYTES

_DEFAULT_SHARD_IMAGES = 1000
_DEFAULT_SHARD_BYTES = 100_000_000
_DEFAULT_BUFFER_BYTES = 1 << 30
_SMALLEST_SHARD_BYTES = 65_536


@dataclass(frozen=True)
class BuildOptions(ImageRecipe):
    """How shards are cut and written; beside what an `ImageRecipe` says of each image.

    `shard_images` (1000 unless `shard_bytes` is given) or `shard_bytes`, the largest size of a tar,
    cut the shards; `workers` processes write them (None: one per core); `seed` shuffles the images
    over all shards unless `shuffle` is off; `progress` shows a bar on a terminal. Of a stream only:
    `shards`, their number, cuts too; at most `buffer_bytes` wait in memory to be written; shards
    grow in `scratch` where the output is no folder.
    """

    shard_images: int | None = None
    shard_bytes: int | None = None
    workers: int | None = None
    seed: int = 0
    shuffle: bool = True
    progress: bool = True
    shards: int | None = None
    buffer_bytes: int = _DEFAULT_BUFFER_BYTES
    scratch: Path | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no shards."""
        super().__post_init__()
        cuts = [
            f"--{name.replace('_', '-')} {getattr(self, name)}"
            for name in ("shard_images", "shard_bytes", "shards")
            if getattr(self, name) is not None
        ]
        if len(cuts) > 1:
            raise RefusedInput(f"{' and '.join(cuts)} are both given; one of them cuts the shards")
        lowest = {
            "shard_images": 1,
            "shard_bytes": _SMALLEST_SHARD_BYTES,
            "shards": 1,
            "buffer_bytes": 1,
            "workers": 1,
            "seed": 0,
        }
        for name, smallest in lowest.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                option = f"--{name.replace('_', '-')}"
                raise RefusedInput(f"{option} {value}: give at least {smallest}")


def plan_shards(source: Source, options: BuildOptions) -> list[NDArray[np.int64]]:
    """Rows of every shard, in the order in which they are written."""
    if options.shards is not None:
        raise RefusedInput(
            f"--shards {options.shards}: {source.name} is a listing, not a stream; cut it by "
            "--shard-images or --shard-bytes"
        )
    if options.scratch is not None:
        raise RefusedInput(
            f"--scratch {options.scratch}: {source.name} is a listing, not a stream; its shards "
            "are written one by one and need no such folder"
        )
    num_images = len(source.labels)
    rows = np.arange(num_images, dtype=np.int64)
    if options.shuffle:
        rows = stable_permutation(num_images, "build", options.seed)
    if options.shard_bytes is None:
        size = options.shard_images or _DEFAULT_SHARD_IMAGES
        return [rows[start : start + size] for start in range(0, num_images, size)]
    return _cut_by_bytes(rows, source.size_bounds()[rows], options.shard_bytes)


def num_stream_shards(source: StreamSource, options: BuildOptions) -> int:
    """Number of shards of a stream, by its number of images if that is known, else by its bytes.

    Raises:
        RefusedInput: The order is to be kept, or images are to be counted that cannot be.
    """
    if not options.shuffle:
        raise RefusedInput(
            f"--no-shuffle: {source.name} is read as a stream, which sends each image to a shard "
            "drawn by --seed; the column source_row of the index keeps the order"
        )
    if options.shards is not None:
        return options.shards
    if options.shard_images is not None and source.num_images is None:
        raise RefusedInput(
            f"--shard-images {options.shard_images}: how many images {source.name} holds is not "
            "known before it has been read; cut it by --shards or --shard-bytes"
        )
    if options.shard_bytes is None and source.num_images is not None:
        return -(-source.num_images // (options.shard_images or _DEFAULT_SHARD_IMAGES)) or 1
    return -(-source.num_bytes // (options.shard_bytes or _DEFAULT_SHARD_BYTES)) or 1


def _cut_by_bytes(
    rows: NDArray[np.int64], sizes: NDArray[np.int64], shard_bytes: int
) -> list[NDArray[np.int64]]:
    """Fill each shard up to `shard_bytes`; an image larger than that gets a shard of its own."""
    padded = -(-sizes // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES + OVERHEAD_BYTES
    ends = np.cumsum(padded)
    shards = []
    start, written = 0, 0
    while start < len(rows):
        limit = written + shard_bytes - END_OF_TAR_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        shards.append(rows[start:stop])
        start, written = stop, int(ends[stop - 1])
    return shards
