"""The record of a finished shard, which lies beside it until the build is joined.

A record holds the shard's rows of the index, its digest, and what was left out; with the records of
all shards a build is finished, whoever wrote them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from data_pipeline.output_store import OutputStore

BUILDING_FOLDER = ".building"
_RECORD_END = ".arrow"
_FACTS_FIELD = b"vitrain.shard"
# Beside the index's columns: a digest of each image's bytes, by which exact copies are counted.
CONTENT_BYTES = 16
CONTENT_FIELD = pa.field("content", pa.binary(CONTENT_BYTES), nullable=False)


@dataclass(frozen=True)
class SkippedFile:
    """A file that did not get into the shards."""

    where: str
    reason: str


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is finished; `number` is its place in the plan.

    `changes` counts images that were stored otherwise than as their bytes, by the words of
    `PreparedImage.change`. `was_there` marks a shard that an earlier start wrote.
    """

    number: int
    num_images: int
    num_bytes: int
    sha256: str
    skipped: tuple[SkippedFile, ...] = ()
    changes: dict[str, int] = field(default_factory=dict)
    was_there: bool = False


@dataclass(frozen=True)
class WrittenShards:
    """Shards that are finished; `num_images` of theirs were written by this start.

    `notices` are what the source had to say; a stream that did not have to be read says nothing.
    """

    shards: list[WrittenShard]
    num_images: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard and its rows of the index, with a column `content`.

    What the column `shard` says becomes true when all shards are joined.
    """

    shard: WrittenShard
    table: pa.Table

    def save(self, store: OutputStore) -> None:
        """Write the record, which makes the shard count as finished; raises OSError."""
        facts = asdict(self.shard)
        del facts["was_there"]
        table = self.table.replace_schema_metadata({_FACTS_FIELD: json.dumps(facts).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        store.write(_record_name(self.shard.number), sink.getvalue(), durable=False)

    @classmethod
    def load(cls, store: OutputStore, number: int) -> ShardRecord | None:
        """Read a record; None if there is none, or none that can be read."""
        try:
            data = store.read(_record_name(number))
            table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
            facts: dict[str, Any] = json.loads(table.schema.metadata[_FACTS_FIELD])
            skipped = tuple(SkippedFile(**file) for file in facts.pop("skipped"))
            shard = WrittenShard(**facts, skipped=skipped, was_there=True)
        except (FileNotFoundError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None
        return cls(shard, table.replace_schema_metadata(None))


def staged_tar(number: int) -> str:
    """Name of a shard of the plan until the build is finished."""
    return f"{BUILDING_FOLDER}/{number:06d}.tar"


def find_finished(store: OutputStore, number: int, named: str | None) -> WrittenShard | None:
    """The shard if an earlier start finished it and it is as it was then.

    `named` is the name that it may have got already, when that start was ending.
    """
    record = ShardRecord.load(store, number)
    if record is None:
        return None
    shard = record.shard
    for name in filter(None, (staged_tar(number), named)):
        if store.is_intact(name, shard.num_bytes, shard.sha256):
            return shard
    return None


def recorded_numbers(store: OutputStore) -> set[int]:
    """Shards of the plan with a record."""
    names = store.sizes(BUILDING_FOLDER)
    stems = (name.removesuffix(_RECORD_END) for name in names if name.endswith(_RECORD_END))
    return {int(stem) for stem in stems if stem.isdigit()}


def count_records(store: OutputStore) -> int:
    """Number of shards with a record."""
    return len(recorded_numbers(store))


def _record_name(number: int) -> str:
    return f"{BUILDING_FOLDER}/{number:06d}{_RECORD_END}"
