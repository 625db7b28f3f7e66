"""A shard while it grows: samples go in, the tar goes out, its index rows are kept.

Rows are kept as packed numbers, because a stream lets thousands of shards grow at the same time.
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.image_header import NotAnImage
from data_pipeline.index_table import INDEX_SCHEMA, index_schema
from data_pipeline.label_sets import NO_SINGLE_LABEL, LabelSet, LabelSetColumns
from data_pipeline.prepare_image import ImageRecipe, prepare_image
from data_pipeline.shard_record import (
    CONTENT_FIELD,
    ShardRecord,
    SkippedFile,
    WrittenShard,
)
from data_pipeline.tar_writer import BUFFER_BYTES, ShardTar, Sink

_NUMBERS = ("offset", "size", "label", "width", "height", "source_row")


class ShardSamples:
    """Takes the images of one shard and writes them to an open file."""

    def __init__(self, file: Sink, recipe: ImageRecipe, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Begin a shard; `buffer_bytes` of it wait in memory until they are written."""
        self.tar = ShardTar(file, buffer_bytes)
        self._recipe = recipe
        self._skipped: list[SkippedFile] = []
        self._changes: Counter[str] = Counter()
        self._extensions: list[str] = []
        self._contents = bytearray()
        self._numbers = array("q")
        self._label_sets = LabelSetColumns()

    def add(self, row: int, label: int | LabelSet, where: str, content: bytes | OSError) -> None:
        """Take an image's file, or the error that reading it raised.

        What cannot be used is left out and noted, with where it comes from.

        Raises:
            OSError: The shard cannot be written.
        """
        try:
            if isinstance(content, OSError):
                raise NotAnImage(content.strerror or str(content))
            image = prepare_image(content, self._recipe)
        except NotAnImage as reason:
            self._skipped.append(SkippedFile(where, str(reason)))
            return
        data = image.data
        label_member = _label_member(label)
        if isinstance(label, LabelSet):
            self._label_sets.add(label)
            label = NO_SINGLE_LABEL
        offset = self.tar.add(f"{row:09d}", label_member, (image.extension, data))
        self._numbers.extend((offset, len(data), label, image.width, image.height, row))
        self._extensions.append(image.extension)
        self._contents += xxhash.xxh3_128_digest(data)
        if image.change:
            self._changes[image.change] += 1

    def finish(self, number: int) -> ShardRecord:
        """Write the rest; gives the record of the shard, which is `number` in the plan.

        Raises:
            OSError: The shard cannot be written.
        """
        self.tar.close()
        written = WrittenShard(
            number=number,
            num_images=len(self._extensions),
            num_bytes=self.tar.num_bytes,
            sha256=self.tar.sha256(),
            skipped=tuple(self._skipped),
            changes=dict(self._changes),
        )
        return ShardRecord(written, self._table())

    def _table(self) -> pa.Table:
        count = len(self._extensions)
        numbers = np.frombuffer(self._numbers, np.int64).reshape(count, len(_NUMBERS))
        columns = {name: numbers[:, place] for place, name in enumerate(_NUMBERS)}
        table = pa.table(
            {
                "shard": np.zeros(count, np.int32),
                "key": pa.array([f"{row:09d}" for row in columns["source_row"].tolist()]),
                "extension": pa.array(self._extensions, pa.string()),
                **{name: np.ascontiguousarray(values) for name, values in columns.items()},
            }
        ).select(INDEX_SCHEMA.names)
        for name, column in self._label_sets.columns().items():
            table = table.append_column(name, column)
        contents = [None, pa.py_buffer(bytes(self._contents))]
        digests = pa.Array.from_buffers(CONTENT_FIELD.type, count, contents)
        return table.cast(index_schema(table)).append_column(CONTENT_FIELD, digests)


def _label_member(label: int | LabelSet) -> tuple[str, bytes]:
    """Extension and content of the member that tells the label."""
    if isinstance(label, LabelSet):
        return "cls.json", label.as_json()
    return "cls", str(label).encode()
