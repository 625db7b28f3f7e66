"""The index that shards' records become: the same as of one table, in memory that does not grow."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import joined_index
from data_pipeline.index import read_index, write_index
from data_pipeline.index_table import INDEX_SCHEMA, index_digest
from data_pipeline.joined_index import joining
from data_pipeline.label_sets import LABEL_SET_FIELDS
from data_pipeline.output_store import LocalStore
from data_pipeline.shard_record import CONTENT_FIELD, ShardRecord, WrittenShard


def record(number: int, num_images: int, contents=None, label_sets: bool = False) -> ShardRecord:
    """A shard with different rows for every number."""
    rng = np.random.default_rng(number)
    columns = {
        "shard": [0] * num_images,
        "key": [f"{number}-{row}" for row in range(num_images)],
        "extension": ["jpg"] * num_images,
        **{name: rng.integers(0, 1000, num_images) for name in INDEX_SCHEMA.names[3:]},
    }
    table = pa.table(columns).cast(INDEX_SCHEMA)
    if label_sets:
        for field in LABEL_SET_FIELDS:
            sets = [list(range(row % 3)) for row in range(num_images)]
            table = table.append_column(field, pa.array(sets, field.type))
    digests = [rng.bytes(16) for _ in range(num_images)] if contents is None else contents
    table = table.append_column(CONTENT_FIELD, pa.array(digests, CONTENT_FIELD.type))
    return ShardRecord(WrittenShard(number, num_images, 10, "0" * 64), table)


@pytest.mark.parametrize("label_sets", [False, True], ids=["labels", "label sets"])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_the_index_is_that_of_one_table(tmp_path, monkeypatch, label_sets, rows_at_once):
    monkeypatch.setattr("data_pipeline.index_table._ROWS_WRITTEN_AT_ONCE", rows_at_once)
    counts = [4, 0, 9, 1]
    records = [record(n, count, label_sets=label_sets) for n, count in enumerate(counts)]
    with joining(LocalStore(tmp_path)) as joined:
        joined.gather(iter(records))
        digest = joined.save(LocalStore(tmp_path))
    assert [shard.number for shard in joined.shards] == [0, 1, 2, 3] and joined.num_rows == 14
    found = read_index(tmp_path)
    assert found["shard"].to_pylist() == [0] * 4 + [1] * 9 + [2]  # closed up over the empty one
    filled = [one.table.drop_columns("content") for one in records if one.shard.num_images]
    whole = pa.concat_tables(filled)
    whole = whole.set_column(0, INDEX_SCHEMA.field("shard"), found["shard"])
    assert found.replace_schema_metadata(None).equals(whole.combine_chunks())
    assert digest == index_digest(whole) == write_index(tmp_path, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"]


@pytest.mark.parametrize("sorted_at_once", [1, 3, 1000])
def test_duplicates_are_counted_over_all_shards(tmp_path, monkeypatch, sorted_at_once):
    monkeypatch.setattr(joined_index, "_CONTENTS_SORTED_AT_ONCE", sorted_at_once)
    values = np.random.default_rng(0).integers(0, 12, 40).tolist()
    # Alike in one half of their digest, so that only both halves tell them apart.
    contents = [bytes(8) + value.to_bytes(8, "little") for value in values[:20]]
    contents += [value.to_bytes(8, "little") + bytes(8) for value in values[20:]]
    records = [record(n, 5, contents[5 * n : 5 * n + 5]) for n in range(8)]
    with joining(LocalStore(tmp_path)) as joined:
        joined.gather(iter(records))
        assert joined.count_duplicates() == len(contents) - len(set(contents)) > 10


MEMORY = """
import resource, sys
from pathlib import Path
from tests.data_pipeline.test_joined_index import record
from data_pipeline.joined_index import joining
from data_pipeline.output_store import LocalStore

one = record(0, 2000)
with joining(LocalStore(Path(sys.argv[1]))) as joined:
    joined.gather(one for _ in range(int(sys.argv[2])))
    joined.save(LocalStore(Path(sys.argv[1])))
    joined.count_duplicates()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_memory_does_not_grow_with_the_images(tmp_path):
    """Half a million more rows take 60 MB as columns, and their keys as strings as much again."""

    def peak_megabytes(num_shards: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(num_shards)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return int(done.stdout) / 1024

    assert peak_megabytes(350) < peak_megabytes(100) + 25
