"""Lists of images that must not be trained on, such as `data_pipeline.leaks` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.errors import RefusedInput
from data_pipeline.dataset import ShardedDataset
from data_pipeline.location import redacted
from data_pipeline.order import IntArray

SHARD_COLUMN = "train_shard"
KEY_COLUMN = "train_key"
# Metadata of the file's schema, as data_pipeline.leaks writes it: JSON with "train_digest", the
# digest of the dataset that the list was made for.
METADATA_FIELD = b"vitrain.leaks"

_LIST_SCHEMA = pa.schema(
    [pa.field(name, pa.large_string(), nullable=False) for name in (SHARD_COLUMN, KEY_COLUMN)]
)

_Image = tuple[str, str]


def excluded_rows(dataset: ShardedDataset, path: Path) -> IntArray:
    """Rows of `dataset`, ascending, that the Parquet file `path` names.

    An image is named by its shard (as the manifest has it) and key, once or more often; further
    columns are of no matter. A list without rows excludes nothing.

    Raises:
        RefusedInput: The file cannot be read, lacks a column, or was made for another dataset: it
            says so, or names an image that `dataset` does not have.
    """
    named = _read_list(path, dataset)
    keys = dataset.keys()
    # Narrowed down to the rows of equal key first: far fewer become Python objects that way.
    of_interest = pa.array(sorted({key for _, key in named}), pa.large_string())
    rows = np.from_dlpack(pc.indices_nonzero(pc.is_in(keys, value_set=of_interest)))
    # A list names shards as the manifest does, but for the secrets that a signed URL may hold.
    shards = [(shard.path, redacted(shard.path)) for shard in dataset.manifest.shards]
    found: set[_Image] = set()
    excluded: list[int] = []
    for row, key in zip(rows.tolist(), keys.take(pa.array(rows)).to_pylist(), strict=True):
        names = {(shard, key) for shard in shards[dataset.shard[row]]} & named
        if names:
            found |= names
            excluded.append(row)
    if missing := named - found:
        shard, key = min(missing)
        raise RefusedInput(
            f"data.exclude = {path} was made for another dataset: of its {len(named)} images "
            f"{dataset.place} lacks {len(missing)}, for example {key!r} of shard {shard!r}; "
            f"{_remedy(dataset)}"
        )
    return np.array(excluded, dtype=np.int64)


def _read_list(path: Path, dataset: ShardedDataset) -> set[_Image]:
    columns = _LIST_SCHEMA.names
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            lacking = [name for name in columns if name not in schema.names]
            table = None if lacking else file.read(columns).select(columns).cast(_LIST_SCHEMA)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RefusedInput(
            f"data.exclude = {path} cannot be read as a Parquet file: {error}; {_remedy(dataset)}"
        ) from error
    if table is None:
        raise RefusedInput(
            f"data.exclude = {path} has no column {lacking[0]!r}, only {schema.names}; "
            f"{_remedy(dataset)}"
        )
    digest = _recorded_digest(schema)
    if digest not in (None, dataset.digest):
        raise RefusedInput(
            f"data.exclude = {path} was made for another dataset (data digest {digest:.12}...) "
            f"than {dataset.place} ({dataset.digest[:12]}...); {_remedy(dataset)}"
        )
    shards, keys = (table[name].to_pylist() for name in columns)
    return set(zip(shards, keys, strict=True))


def _recorded_digest(schema: pa.Schema) -> str | None:
    """Which dataset the list says it was made for; None if it does not say (made by hand)."""
    text = (schema.metadata or {}).get(METADATA_FIELD)
    if text is None:
        return None
    try:
        return str(json.loads(text)["train_digest"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _remedy(dataset: ShardedDataset) -> str:
    return f"make it with `python -m data_pipeline.leaks --train {dataset.place} --test DIR`"
