"""`index.parquet`: its columns, its digest, and whether it belongs to a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import RefusedInput
from data_pipeline.label_sets import LABEL_SET_FIELDS, NO_SINGLE_LABEL, bad_label_sets
from data_pipeline.manifest import INDEX_FILE, Manifest, data_digest

# `offset` is where the image's bytes begin in the tar; `source_row` the image's running number in
# the source's own order, which shuffled shards otherwise forget.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("extension", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
    ]
)
# Where images have label sets, `label` is -1 throughout and two columns follow.
MULTI_LABEL_SCHEMA = pa.schema([*INDEX_SCHEMA, *LABEL_SET_FIELDS])
_DIGEST_FIELD = b"vitrain.index_digest"
_STRINGS_HASHED_AT_ONCE = 65_536
_ROWS_WRITTEN_AT_ONCE = 32_768


def write_index(folder: Path, table: pa.Table) -> str:
    """Write `index.parquet` under a temporary name, rename it, and return its digest (hex)."""
    digest = index_digest(table)
    schema = index_schema(table)
    temporary = folder / f"{INDEX_FILE}.partial"
    with open(temporary, "wb") as file:
        write_index_file(file, schema, digest, table.cast(schema).to_batches())
    os.replace(temporary, folder / INDEX_FILE)
    return digest


def write_index_file(
    file: IO[bytes], schema: pa.Schema, digest: str, batches: Iterable[pa.RecordBatch]
) -> None:
    """Write an index of this digest (hex), a few of its batches at a time."""
    schema = schema.with_metadata({_DIGEST_FIELD: digest.encode()})
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(batch)
            if sum(len(rows) for rows in waiting) >= _ROWS_WRITTEN_AT_ONCE:
                writer.write_table(_one_table(waiting, schema))
                waiting.clear()
        writer.write_table(_one_table(waiting, schema))


def index_schema(table: pa.Table) -> pa.Schema:
    """The columns that an index has: with label sets where `table` has any."""
    return MULTI_LABEL_SCHEMA if "positive" in table.schema.names else INDEX_SCHEMA


def read_index(folder: Path) -> pa.Table:
    """Read `index.parquet` of `folder`, every column in one chunk.

    Raises:
        RefusedInput: It is missing or not an index that this version can read.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise RefusedInput(f"{path} is missing; build the dataset anew")
    try:
        # Not read_table: it imports pyarrow.dataset, and with it pandas, for half a second.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise RefusedInput(f"{path} cannot be read ({error}); build the dataset anew") from error
    if not table.schema.equals(index_schema(table)):
        raise RefusedInput(
            f"{path} has the columns {table.schema.names}, expected {INDEX_SCHEMA.names}; "
            "build the dataset anew"
        )
    return table.combine_chunks()


def column_values(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column without nulls as a numpy array."""
    column = table[name]
    # Not combined where it is one piece: that would copy, and a memory-mapped column stays on disk.
    # pyarrow's own to_numpy would import pandas, for half a second.
    return np.from_dlpack(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def index_digest(table: pa.Table) -> str:
    """SHA-256 (hex) of an index's content, independent of how parquet stores it."""
    return digest_columns(index_schema(table), len(table), lambda name: table[name].chunks)


def digest_columns(
    schema: pa.Schema, num_rows: int, pieces: Callable[[str], Iterable[pa.Array]]
) -> str:
    """The same of columns that `pieces` gives by name, each piece by piece; some of them twice."""
    digest = hashlib.sha256()
    for field in schema:
        digest.update(f"{field.name}:{field.type}:{num_rows}\n".encode())
        if pa.types.is_large_list(field.type):
            for piece in pieces(field.name):
                digest.update(np.from_dlpack(piece.value_lengths()).astype("<i8").tobytes())
            for piece in pieces(field.name):
                digest.update(np.from_dlpack(piece.flatten()).astype("<i8").tobytes())
            continue
        for piece in pieces(field.name):
            if pa.types.is_large_string(field.type):
                _hash_strings(digest, piece)
            else:
                values = np.from_dlpack(piece)
                digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


# pyarrow's own conversions import pandas, for half a second and 60 MB; these do not.
def make_column(values: np.ndarray, type: pa.DataType) -> pa.Array:
    """A column of fixed-width numbers (or bytes) from an array that holds just these."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(type, buffer.size * 8 // type.bit_width, [None, buffer])


def make_strings(strings: Sequence[str]) -> pa.Array:
    """A column of strings."""
    encoded = [string.encode() for string in strings]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def _hash_strings(digest: Any, strings: pa.Array) -> None:
    for start in range(0, len(strings), _STRINGS_HASHED_AT_ONCE):
        some = strings.slice(start, _STRINGS_HASHED_AT_ONCE).to_pylist()
        digest.update("".join(f"{string}\0" for string in some).encode())


def _one_table(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    batches = [batch.replace_schema_metadata(schema.metadata) for batch in batches]
    return pa.Table.from_batches(batches, schema)


def recorded_digest(table: pa.Table) -> str:
    """The digest that was stored inside `index.parquet` when it was written, or ""."""
    return (table.schema.metadata or {}).get(_DIGEST_FIELD, b"").decode(errors="replace")


def disagreements(manifest: Manifest, table: pa.Table, *, rows_too: bool = True) -> list[str]:
    """What is wrong between a manifest and an index, as far as these two can tell; cheap.

    `rows_too` reads every row; without, only what is recorded about the whole is compared.
    """
    found = []
    if manifest.digest != data_digest(manifest.classes, manifest.shards, manifest.index_digest):
        found.append(
            "the digest in manifest.json does not follow from its classes, shards and index"
        )
    if recorded_digest(table) != manifest.index_digest:
        found.append("index.parquet is not the one that manifest.json was written for")
    if table.num_rows != manifest.num_images:
        found.append(
            f"manifest.json counts {manifest.num_images} images, index.parquet {table.num_rows}"
        )
    if table.num_rows == 0:
        return [*found, "the dataset holds no images"]
    return found + (_bad_columns(manifest, table) if rows_too else [])


def _bad_columns(manifest: Manifest, table: pa.Table) -> list[str]:
    found = []
    shard, label = column_values(table, "shard"), column_values(table, "label")
    num_shards, num_classes = len(manifest.shards), len(manifest.classes)
    if shard.min() < 0 or shard.max() >= num_shards:
        return [f"index.parquet names shard {shard.max()}, manifest.json lists {num_shards} shards"]
    counts = np.bincount(shard, minlength=num_shards)
    for entry, count in zip(manifest.shards, counts, strict=True):
        if count != entry.num_images:
            found.append(
                f"{entry.path}: manifest.json counts {entry.num_images} images, "
                f"index.parquet {count}"
            )
    if "positive" in table.schema.names:
        found += _bad_label_sets(table, label, num_classes)
    elif label.min() < 0 or label.max() >= num_classes:
        found.append(
            f"index.parquet has labels {label.min()}..{label.max()}, "
            f"manifest.json {num_classes} classes"
        )
    offset, size = column_values(table, "offset"), column_values(table, "size")
    same_shard = shard[1:] == shard[:-1]
    overlapping = same_shard & (offset[1:] < offset[:-1] + size[:-1])
    if np.any(shard[1:] < shard[:-1]) or np.any(overlapping) or offset.min() < 0 or size.min() < 0:
        found.append("index.parquet is not in the order of the shards, or its images overlap")
    return found


def _bad_label_sets(table: pa.Table, label: np.ndarray, num_classes: int) -> list[str]:
    wrong = bad_label_sets(table, num_classes)
    if wrong is None and np.any(label != NO_SINGLE_LABEL):
        wrong = "index.parquet has single labels beside label sets"
    return [] if wrong is None else [wrong]
