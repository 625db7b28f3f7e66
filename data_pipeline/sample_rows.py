"""Index rows of images that are being written, kept as packed numbers: there may be many."""

from __future__ import annotations

from array import array

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.index_table import INDEX_SCHEMA, MULTI_LABEL_SCHEMA, make_column, make_strings
from data_pipeline.label_sets import NO_SINGLE_LABEL, LabelSet, LabelSetColumns
from data_pipeline.prepare_image import PreparedImage
from data_pipeline.shard_record import CONTENT_FIELD

_NUMBERS = ("shard", "offset", "size", "label", "width", "height", "source_row")


class SampleRows:
    """Takes images in the order of their rows; `len` of it is their number."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._extensions: list[str] = []
        self._contents = bytearray()
        self._numbers = array("q")
        self._label_sets = LabelSetColumns()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._extensions)

    def add(
        self, row: int, label: int | LabelSet, image: PreparedImage, offset: int, shard: int = 0
    ) -> None:
        """Take an image whose bytes begin at `offset` of the tar of `shard`."""
        if isinstance(label, LabelSet):
            self._label_sets.add(label)
            label = NO_SINGLE_LABEL
        size, width, height = len(image.data), image.width, image.height
        self._numbers.extend((shard, offset, size, label, width, height, row))
        self._extensions.append(image.extension)
        self._contents += xxhash.xxh3_128_digest(image.data)

    def table(self) -> pa.Table:
        """The rows: columns of the index, and `content`."""
        count = len(self)
        numbers = np.frombuffer(self._numbers, np.int64).reshape(count, len(_NUMBERS))
        columns = {name: numbers[:, place] for place, name in enumerate(_NUMBERS)}
        keys = [f"{row:09d}" for row in columns["source_row"].tolist()]
        made = {"key": make_strings(keys), "extension": make_strings(self._extensions)}
        for name, values in columns.items():
            type = INDEX_SCHEMA.field(name).type
            made[name] = make_column(values.astype(f"i{type.bit_width // 8}"), type)
        table = pa.table([made[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)
        for name, column in self._label_sets.columns().items():
            table = table.append_column(MULTI_LABEL_SCHEMA.field(name), column)
        digests = make_column(np.frombuffer(self._contents, np.uint8), CONTENT_FIELD.type)
        return table.append_column(CONTENT_FIELD, digests)
