"""`leaks.parquet`: a row per pair of a training image and a test image that it shows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import RefusedInput
from data_pipeline.dataset import ShardedDataset
from data_pipeline.leaks.held_out import HeldOutImages
from data_pipeline.leaks.search import Match
from data_pipeline.location import redacted

# Shards are named as the manifest names them; a row is a row of the dataset's index.
LEAKS_SCHEMA = pa.schema(
    [
        pa.field("train_shard", pa.string(), nullable=False),
        pa.field("train_key", pa.string(), nullable=False),
        pa.field("train_row", pa.int64(), nullable=False),
        pa.field("test_folder", pa.string(), nullable=False),
        pa.field("test_shard", pa.string(), nullable=False),
        pa.field("test_key", pa.string(), nullable=False),
        pa.field("test_row", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
    ]
)
METADATA_FIELD = b"vitrain.leaks"
_ROWS_AT_ONCE = 65_536


class LeakTable:
    """Writes the pairs, a part at a time; the file appears under its name when all are written.

    Use it in a `with` block; what fails inside leaves no file behind.
    """

    def __init__(
        self, path: Path, train: ShardedDataset, held_out: HeldOutImages, max_distance: float
    ) -> None:
        """Open the file under a temporary name.

        Raises:
            RefusedInput: it cannot be written.
        """
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._train, self._held_out = train, held_out
        self._rows: list[dict[str, Any]] = []
        facts = {
            "format_version": 1,
            "train_digest": train.digest,
            "tests": [
                {"folder": dataset.place, "digest": dataset.digest} for dataset in held_out.datasets
            ],
            "max_distance": max_distance,
        }
        schema = LEAKS_SCHEMA.with_metadata({METADATA_FIELD: json.dumps(facts).encode()})
        try:
            self._writer = pq.ParquetWriter(self._partial, schema, compression="zstd")
        except OSError as error:
            raise RefusedInput(f"--output {path} cannot be written: {error}") from error

    def __enter__(self) -> LeakTable:
        """Give the table itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the file, or remove it after a failure."""
        if error_type is None:
            self._flush()
        self._writer.close()
        if error_type is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def write(self, matches: Sequence[Match]) -> None:
        """Add pairs."""
        self._rows += [self._row(match) for match in matches]
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def _row(self, match: Match) -> dict[str, Any]:
        held_out = self._held_out
        test = held_out.datasets[held_out.set_number[match.image]]
        test_row = int(held_out.row[match.image])
        return {
            "train_shard": shard_name(self._train, match.train_row),
            "train_key": self._train.key(match.train_row),
            "train_row": match.train_row,
            "test_folder": test.place,
            "test_shard": shard_name(test, test_row),
            "test_key": test.key(test_row),
            "test_row": test_row,
            "kind": match.kind,
            "distance": match.distance,
        }

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=LEAKS_SCHEMA))
            self._rows.clear()


def shard_name(dataset: ShardedDataset, row: int) -> str:
    """Path or URL of a row's shard as the manifest has it, without what a URL should not show."""
    return redacted(dataset.manifest.shards[int(dataset.shard[row])].path)
