"""What a build from a stream has done so far, on disk, so that a killed one can go on.

    FOLDER/progress.json        the last checkpoint; it is replaced last, so it alone decides
    FOLDER/rows-000004.arrow    index rows of the images between two checkpoints, and what was
                                left out or stored anew between them

Rows wait here instead of in memory until the shards that they belong to are finished.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.index_table import make_column
from data_pipeline.output_store import LocalStore
from data_pipeline.sample_rows import SampleRows
from data_pipeline.shard_record import SkippedFile

PROGRESS_FILE = "progress.json"
_NOTES_FIELD = b"vitrain.notes"


@dataclass(frozen=True)
class Progress:
    """A checkpoint.

    Attributes:
        position: images of the stream that have been dealt with.
        num_row_files: files of rows that count.
        num_bytes: of each growing shard, by its number.
        sha256: digests (hex) of these bytes.
        is_complete: whether the stream has been read to its end.
        notices: what the stream had to say at its end.
    """

    position: int = 0
    num_row_files: int = 0
    num_bytes: dict[int, int] = field(default_factory=dict)
    sha256: dict[int, str] = field(default_factory=dict)
    is_complete: bool = False
    notices: tuple[str, ...] = ()


@dataclass
class Notes:
    """What is known of some images beside their rows, by the number of their shard.

    `changes` counts images by the words of `PreparedImage.change`.
    """

    skipped: defaultdict[int, list[SkippedFile]] = field(default_factory=lambda: defaultdict(list))
    changes: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def as_json(self) -> str:
        """One line, for `take`."""
        skipped = [
            (number, file.where, file.reason)
            for number, files in self.skipped.items()
            for file in files
        ]
        return json.dumps({"skipped": skipped, "changes": self.changes})

    def take(self, text: str | bytes) -> None:
        """Add what another one said."""
        said = json.loads(text)
        for number, where, reason in said["skipped"]:
            self.skipped[number].append(SkippedFile(where, reason))
        for number, counts in said["changes"].items():
            self.changes[int(number)].update(counts)


class StreamJournal:
    """The files above, of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self._store = LocalStore(folder)

    def progress(self) -> Progress | None:
        """The last checkpoint; None if there is none, or none that this version wrote."""
        try:
            said = json.loads(self._store.read(PROGRESS_FILE))
            by_number = {
                name: {int(number): value for number, value in said.pop(name).items()}
                for name in ("num_bytes", "sha256")
            }
            return Progress(**{**said, **by_number, "notices": tuple(said["notices"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def commit(self, progress: Progress, rows: SampleRows, notes: Notes) -> None:
        """Make a checkpoint count; `rows` and `notes` become its last file of rows.

        Raises:
            OSError: The disk does not take it; the checkpoint before it counts then.
        """
        table = rows.table().replace_schema_metadata({_NOTES_FIELD: notes.as_json().encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self._store.write(_rows_file(progress.num_row_files - 1), sink.getvalue())
        self._store.write(PROGRESS_FILE, json.dumps(asdict(progress)).encode())

    def notes(self, num_row_files: int) -> Notes:
        """All notes, in the order of the stream."""
        notes = Notes()
        for table in self._tables(num_row_files):
            notes.take(table.schema.metadata[_NOTES_FIELD])
        return notes

    def num_rows(self, num_row_files: int) -> int:
        """Number of all rows."""
        return sum(len(table) for table in self._tables(num_row_files))

    def rows_of(self, shards: Sequence[int], num_row_files: int) -> pa.Table:
        """The rows of some shards: shard by shard, each in the order of the stream."""
        wanted = make_column(np.array(shards, np.int32), pa.int32())
        some = [
            table.filter(pc.is_in(table["shard"], value_set=wanted)).replace_schema_metadata(None)
            for table in self._tables(num_row_files)
        ]
        # Without a row, a table does not know whether the images have label sets.
        filled = [table for table in some if len(table)]
        table = pa.concat_tables(filled or [SampleRows().table()])
        return table.take(pc.sort_indices(table["shard"]))

    def keep_only(self, progress: Progress, others: Sequence[str]) -> None:
        """Remove all files that the checkpoint does not count, nor `others` names."""
        names = {PROGRESS_FILE, *others, *map(_rows_file, range(progress.num_row_files))}
        for name in self._store.sizes():
            if name not in names:
                self._store.remove(name)

    def _tables(self, num_row_files: int) -> Iterator[pa.Table]:
        for number in range(num_row_files):
            with pa.memory_map(str(self._store.root / _rows_file(number))) as file:
                yield pa.ipc.open_file(file).read_all()


def _rows_file(number: int) -> str:
    return f"rows-{number:06d}.arrow"
