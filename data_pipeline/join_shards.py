"""The end of a build: shards get their names, then come index, skipped files and manifest.

Whether one process wrote the shards, or many over several starts and machines, the result is the
same: it depends on their records alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from configs.errors import RefusedInput
from data_pipeline.index_table import INDEX_SCHEMA, encode_index
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, ShardEntry
from data_pipeline.output_folder import BuildDescription, discard_unfinished, write_skipped
from data_pipeline.output_store import OutputStore
from data_pipeline.shard_record import (
    CONTENT_FIELD,
    ShardRecord,
    SkippedFile,
    count_duplicates,
    count_records,
    staged_tar,
)

_NUMBERS_SHOWN = 5


@dataclass(frozen=True)
class FinishedBuild:
    """A dataset that is complete, and what became of the source's files.

    `changes` counts images by what was done to their bytes ("converted", "shrunk", "broken" and
    kept); `num_duplicates` are images that equal an earlier one to the byte.
    """

    manifest: Manifest
    skipped: tuple[SkippedFile, ...]
    changes: Counter[str]
    num_duplicates: int


def join_shards(store: OutputStore, description: BuildDescription) -> FinishedBuild:
    """Make a dataset of shards that all have their records.

    Raises:
        RefusedInput: A shard is missing, or not one file could be used.
        OSError: The store cannot be written.
    """
    records = _load_records(store, description)
    skipped = tuple(file for record in records for file in record.shard.skipped)
    filled = [record for record in records if record.shard.num_images]
    if not filled:
        discard_unfinished(store)
        first = f"{skipped[0].where}: {skipped[0].reason}" if skipped else "there is none"
        raise RefusedInput(
            f"none of the {len(skipped)} files of {description.name}, split {description.split}, "
            f"can be used; the first is {first}"
        )
    entries = _name_shards(store, description.split, filled)
    index_digest, index = encode_index(_joined_table(filled))
    store.write(INDEX_FILE, index)
    write_skipped(store, skipped)
    manifest = Manifest.describe(
        identity=(description.name, description.split),
        classes=description.classes,
        shards=entries,
        source=description.facts,
        index_digest=index_digest,
    )
    store.write(MANIFEST_FILE, manifest.as_json().encode())
    duplicates = count_duplicates(filled)
    discard_unfinished(store)
    changes: Counter[str] = Counter()
    for record in filled:
        changes.update(record.shard.changes)
    return FinishedBuild(manifest, skipped, changes, duplicates)


def names_already_given(store: OutputStore, description: BuildDescription) -> dict[int, str]:
    """Final names by shard of the plan, if an earlier start came so far that it gave names."""
    if count_records(store) < description.num_shards:
        return {}
    records = _load_records(store, description)
    filled = [record.shard.number for record in records if record.shard.num_images]
    return {number: _name(description.split, place) for place, number in enumerate(filled)}


def _load_records(store: OutputStore, description: BuildDescription) -> list[ShardRecord]:
    numbers = range(description.num_shards)
    found = [ShardRecord.load(store, number) for number in numbers]
    missing = [str(number) for number in numbers if found[number] is None]
    if missing:
        more = ", ..." if len(missing) > _NUMBERS_SHOWN else ""
        raise RefusedInput(
            f"{store.where}: {len(missing)} of {description.num_shards} shards are not written yet "
            f"(numbers {', '.join(missing[:_NUMBERS_SHOWN])}{more}); start their parts again, or "
            "build without --part, which writes just these"
        )
    return [record for record in found if record is not None]


def _name_shards(
    store: OutputStore, split: str, records: Sequence[ShardRecord]
) -> tuple[ShardEntry, ...]:
    """Move the shards to their names; numbers close up over shards that stayed empty."""
    staged, named = store.sizes(staged_tar(0).rpartition("/")[0]), store.sizes()
    entries, moves = [], []
    for number, record in enumerate(records):
        shard = record.shard
        name, tar = _name(split, number), staged_tar(shard.number)
        size = staged.get(tar.rpartition("/")[2])
        if size == shard.num_bytes:
            moves.append((tar, name))
        elif size is not None or named.get(name) != shard.num_bytes:  # moved by an earlier start
            raise RefusedInput(
                f"{store.where}: {tar} is missing or has another size than it was written with; "
                "run the build again, which writes it anew"
            )
        entries.append(ShardEntry(name, shard.num_images, shard.num_bytes, shard.sha256))
    store.move(moves)
    return tuple(entries)


def _name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def _joined_table(records: Sequence[ShardRecord]) -> pa.Table:
    """The index of all shards: their rows with `shard` filled in."""
    tables = []
    position = INDEX_SCHEMA.get_field_index("shard")
    for number, record in enumerate(records):
        numbers = pa.array(np.full(record.shard.num_images, number, dtype=np.int32))
        table = record.table.drop_columns(CONTENT_FIELD.name)
        tables.append(table.set_column(position, INDEX_SCHEMA.field("shard"), numbers))
    return pa.concat_tables(tables).combine_chunks()
