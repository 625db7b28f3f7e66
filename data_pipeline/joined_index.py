"""The rows of all shards' records one after the other, and the index that they become.

They wait in a scratch file and pass through memory a few at a time, so a dataset of millions of
images needs no more of it than a small one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import numpy as np
import pyarrow as pa

from data_pipeline.index_table import (
    INDEX_SCHEMA,
    digest_columns,
    make_column,
    write_index_file,
)
from data_pipeline.manifest import INDEX_FILE
from data_pipeline.output_store import OutputStore
from data_pipeline.shard_record import CONTENT_BYTES, CONTENT_FIELD, ShardRecord, WrittenShard

_CONTENTS_SORTED_AT_ONCE = 1 << 17


class JoinedIndex:
    """Rows of the index in index order, with the column `content`; `num_rows` of them.

    `shards` are all shards of the plan; those without images have no number in the index.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Begin without rows; `file` is an empty one that nobody else uses."""
        self.shards: list[WrittenShard] = []
        self.num_rows = 0
        self._file = file
        self._schema: pa.Schema | None = None

    def gather(self, records: Iterable[ShardRecord]) -> None:
        """Take the rows of every record; called once."""
        number = 0
        place = INDEX_SCHEMA.get_field_index("shard")
        field = INDEX_SCHEMA.field(place)
        with ExitStack() as stack:
            writer = None
            for record in records:
                self.shards.append(record.shard)
                count = record.shard.num_images
                if not count:
                    continue
                numbers = make_column(np.full(count, number, np.int32), field.type)
                table = record.table.set_column(place, field, numbers)
                if writer is None:
                    self._schema = table.schema
                    writer = stack.enter_context(pa.ipc.new_file(self._file, table.schema))
                # One batch: readers below ask for a column of all batches, and each is a request.
                writer.write_table(table.combine_chunks(), max_chunksize=count)
                self.num_rows += count
                number += 1

    def save(self, store: OutputStore) -> str:
        """Write `index.parquet`; gives its digest (hex)."""
        assert self._schema is not None, "an index has rows"
        schema = self._schema.remove(self._schema.get_field_index(CONTENT_FIELD.name))
        digest = digest_columns(schema, self.num_rows, lambda name: self._columns(name, schema))
        with store.create(INDEX_FILE, durable=True) as file:
            write_index_file(file, schema, digest, self._batches(schema.names))
        return digest

    def count_duplicates(self) -> int:
        """Images whose bytes equal those of an earlier image, over all shards."""
        found = 0
        # Equal digests have equal remainders, so every remainder can be looked at by itself.
        rounds = -(-self.num_rows // _CONTENTS_SORTED_AT_ONCE)
        for remainder in range(rounds):
            parts = []
            for batch in self._batches([CONTENT_FIELD.name]):
                halves = _halves(batch.column(0))
                parts.append(halves[halves[:, 0] % rounds == remainder])
            joined = np.concatenate(parts)
            joined = joined[np.lexsort((joined[:, 1], joined[:, 0]))]
            found += int(np.count_nonzero(np.all(joined[1:] == joined[:-1], axis=1)))
        return found

    def _columns(self, name: str, schema: pa.Schema) -> Iterator[pa.Array]:
        assert name in schema.names, "a column of the index"
        for batch in self._batches([name]):
            yield batch.column(0)

    def _batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of each shard's rows; read from the file, and dropped again."""
        assert self._schema is not None, "an index has rows"
        fields = [self._schema.get_field_index(name) for name in names]
        self._file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with pa.ipc.open_file(self._file, options=options) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


@contextmanager
def joining(store: OutputStore) -> Iterator[JoinedIndex]:
    """An empty `JoinedIndex`, whose file goes with this block, or with the process."""
    # Where a file cannot be without a name, one that a kill left behind is swept by its name.
    with tempfile.TemporaryFile(
        dir=store.scratch_folder(), prefix=f"{INDEX_FILE}.", suffix=".partial"
    ) as file:
        yield JoinedIndex(file)


def _halves(contents: pa.Array) -> np.ndarray:
    """Digests as numbers, shape (rows, 2), uint64."""
    start = contents.offset * CONTENT_BYTES
    data = contents.buffers()[1].slice(start, len(contents) * CONTENT_BYTES)
    return np.frombuffer(data, "<u8").reshape(-1, 2)
