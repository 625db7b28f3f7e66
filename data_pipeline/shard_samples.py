"""A shard while it grows: samples go in, the tar goes out, its index rows are kept.

Rows are kept as packed numbers, because a stream lets thousands of shards grow at the same time.
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.index_table import INDEX_SCHEMA, MULTI_LABEL_SCHEMA, make_column, make_strings
from data_pipeline.label_sets import NO_SINGLE_LABEL, LabelSet, LabelSetColumns
from data_pipeline.prepare_image import PreparedImage
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

    def __init__(self, file: Sink, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Begin a shard; `buffer_bytes` of it wait in memory until they are written."""
        self.tar = ShardTar(file, buffer_bytes)
        self._skipped: list[SkippedFile] = []
        self._changes: Counter[str] = Counter()
        self._extensions: list[str] = []
        self._contents = bytearray()
        self._numbers = array("q")
        self._label_sets = LabelSetColumns()

    def add(self, row: int, label: int | LabelSet, where: str, image: PreparedImage | str) -> None:
        """Take an image, or note why there is none, with where it comes from.

        Raises:
            OSError: The shard cannot be written.
        """
        if isinstance(image, str):
            self._skipped.append(SkippedFile(where, image))
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
        keys = [f"{row:09d}" for row in columns["source_row"].tolist()]
        columns["shard"] = np.zeros(count, np.int64)
        made = {"key": make_strings(keys), "extension": make_strings(self._extensions)}
        for name, values in columns.items():
            type = INDEX_SCHEMA.field(name).type
            made[name] = make_column(values.astype(f"i{type.bit_width // 8}"), type)
        table = pa.table([made[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)
        for name, column in self._label_sets.columns().items():
            table = table.append_column(MULTI_LABEL_SCHEMA.field(name), column)
        digests = make_column(np.frombuffer(self._contents, np.uint8), CONTENT_FIELD.type)
        return table.append_column(CONTENT_FIELD, digests)


def _label_member(label: int | LabelSet) -> tuple[str, bytes]:
    """Extension and content of the member that tells the label."""
    if isinstance(label, LabelSet):
        return "cls.json", label.as_json()
    return "cls", str(label).encode()
