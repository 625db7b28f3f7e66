"""Sends the images of a stream to their shards as they come: one pass, bounded memory.

A stream is sorted by class and cannot be shuffled as a list, so each image goes to a shard drawn by
seed and running number. What waits to be written is bounded in bytes, not in images; when it is
full, every shard gets its part, so a larger buffer means fewer, longer writes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data_pipeline.index_table import INDEX_SCHEMA, index_schema
from data_pipeline.label_sets import NO_SINGLE_LABEL, LabelSet, LabelSetColumns
from data_pipeline.order import random_generator
from data_pipeline.shard_plan import BuildOptions, num_stream_shards
from data_pipeline.shard_writer import Member, SkippedFile, WrittenShard, read_member
from data_pipeline.sources.stream_source import StreamSource
from data_pipeline.tar_blocks import BLOCK_BYTES, end_blocks, member_blocks

_DRAWN_AT_ONCE = 65_536


def write_stream(source: StreamSource, options: BuildOptions, staging: Path) -> list[WrittenShard]:
    """Read the stream once and write its shards into `staging`; gives them in their order.

    Raises:
        RefusedInput: A file of the source is damaged.
        OSError: A shard cannot be written.
    """
    shards = [
        _GrowingShard(staging / f"{number:06d}.tar")
        for number in range(num_stream_shards(source, options))
    ]
    numbers = shard_numbers(len(shards), options.seed)
    waiting_bytes = 0
    # None switches the bar off where standard error is not a terminal.
    disable = None if options.progress else True
    images = tqdm(source.stream(), total=source.num_images, unit=" images", disable=disable)
    for row, (image, number) in enumerate(zip(images, numbers, strict=False)):
        shard = shards[number]
        member = read_member(image, shard.skipped)
        if member is not None:
            waiting_bytes += shard.add(row, image.label, member)
        if waiting_bytes > options.buffer_bytes:
            for shard in shards:
                shard.flush()
            waiting_bytes = 0
    return [shard.finish() for shard in shards]


def shard_numbers(num_shards: int, seed: int) -> Iterator[int]:
    """The shard of image 0, 1, 2 ... of a stream, without end."""
    bits = random_generator("stream", seed).bit_generator
    while True:
        yield from (bits.random_raw(_DRAWN_AT_ONCE) % np.uint64(num_shards)).tolist()


class _GrowingShard:
    """A shard that is written in turns; between them no file is open.

    Its index rows are kept as packed numbers: there is one for each of millions of images.
    """

    def __init__(self, path: Path) -> None:
        self.skipped: list[SkippedFile] = []
        self._path = path
        self._waiting = bytearray()
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._num_converted = 0
        self._extensions: list[str] = []
        self._numbers = {
            name: array("q")
            for name in ("source_row", "offset", "size", "label", "width", "height")
        }
        self._label_sets = LabelSetColumns()

    def add(self, row: int, label: int | LabelSet, member: Member) -> int:
        """Take an image; gives the bytes that now wait for it to be written."""
        key, before = f"{row:09d}", len(self._waiting)
        if isinstance(label, LabelSet):
            self._label_sets.add(label)
            self._waiting += member_blocks(f"{key}.cls.json", label.as_json())
            label = NO_SINGLE_LABEL
        else:
            self._waiting += member_blocks(f"{key}.cls", str(label).encode())
        offset = self._num_bytes + len(self._waiting) + BLOCK_BYTES
        self._waiting += member_blocks(f"{key}.{member.extension}", member.data)
        header = member.header
        values = (row, offset, len(member.data), label, header.width, header.height)
        for column, value in zip(self._numbers.values(), values, strict=True):
            column.append(value)
        self._extensions.append(member.extension)
        self._num_converted += member.was_converted
        return len(self._waiting) - before

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._digest.update(self._waiting)
            with open(self._path, "ab") as file:
                file.write(self._waiting)
            self._num_bytes += len(self._waiting)
            self._waiting = bytearray()

    def finish(self) -> WrittenShard:
        """Write the rest and the end of the archive."""
        self._waiting += end_blocks(self._num_bytes + len(self._waiting))
        self.flush()
        count = len(self._extensions)
        columns = {name: np.frombuffer(values, np.int64) for name, values in self._numbers.items()}
        rows = columns["source_row"].tolist()
        table = pa.table(
            {
                **columns,
                "shard": np.zeros(count, np.int32),
                "key": [f"{row:09d}" for row in rows],
                "extension": self._extensions,
                "width": columns["width"].astype(np.int32),
                "height": columns["height"].astype(np.int32),
            }
        )
        table = table.select(INDEX_SCHEMA.names)
        for name, column in self._label_sets.columns().items():
            table = table.append_column(name, column)
        return WrittenShard(
            path=self._path,
            num_images=count,
            num_bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
            table=table.cast(index_schema(table)),
            skipped=tuple(self.skipped),
            num_converted=self._num_converted,
        )
