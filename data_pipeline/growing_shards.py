"""Shards of a stream, which grow side by side in a folder and are finished together.

What waits to be written is written at a checkpoint, to all shards at once; between two checkpoints
nothing on disk changes. What a kill cuts off is what came after the last checkpoint: shards are cut
back to the lengths that it names, and the stream goes on from its position.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.index_table import column_values
from data_pipeline.label_sets import LabelSet
from data_pipeline.output_store import LocalStore, OutputStore
from data_pipeline.prepare_image import PreparedImage
from data_pipeline.sample_rows import SampleRows
from data_pipeline.shard_record import ShardRecord, SkippedFile, WrittenShard, staged_tar
from data_pipeline.shard_samples import add_sample
from data_pipeline.sources.read_ahead import read_ahead
from data_pipeline.stream_journal import Notes, Progress, StreamJournal
from data_pipeline.tar_writer import ShardTar

LOCK_FILE = "lock"
# Writing waits for the disk and hashing releases the interpreter lock.
_THREADS = 16
_UPLOADS_AT_ONCE = 4
_ROWS_SORTED_AT_ONCE = 1 << 20
_READ_AT_ONCE_BYTES = 1 << 20


class GrowingShards:
    """The shards `numbers` of a plan; goes on from the folder's last checkpoint if it can.

    Attributes:
        progress: the last checkpoint.
        waiting_bytes: of the images that came since, which are in memory.
        num_added: images that were added by this process.
    """

    def __init__(self, folder: Path, numbers: Sequence[int]) -> None:
        """Look at what is there; all of it is removed that is of no use.

        Raises:
            OSError: The folder cannot be read or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = StreamJournal(folder)
        self._tars = {number: _GrowingTar(folder / f"{number:06d}.tar") for number in numbers}
        self._begin_interval()
        self.num_added = 0
        progress = self._journal.progress()
        if progress is None or not self._go_on(progress):
            progress = Progress()
            self._tars = {number: _GrowingTar(tar.path) for number, tar in self._tars.items()}
            self._journal.keep_only(progress, [LOCK_FILE])
        self.progress = progress

    def __contains__(self, number: int) -> bool:
        """Whether a shard is among these."""
        return number in self._tars

    def add(
        self, number: int, row: int, label: int | LabelSet, where: str, image: PreparedImage | str
    ) -> None:
        """Take an image for a shard, or note why there is none, with where it comes from."""
        if isinstance(image, str):
            self._notes.skipped[number].append(SkippedFile(where, image))
            return
        tar = self._tars[number].tar
        before = tar.num_bytes
        offset = add_sample(tar, row, label, image)
        self._rows.add(row, label, image, offset, number)
        if image.change:
            self._notes.changes[number][image.change] += 1
        self.waiting_bytes += tar.num_bytes - before
        self.num_added += 1

    def checkpoint(self, position: int, end: Sequence[str] | None = None) -> None:
        """Write all that waits; from here a build goes on that is killed later.

        Args:
            position: images of the stream that were dealt with.
            end: notices of the stream if it has ended.

        Raises:
            OSError: The disk does not take it; the checkpoint before this one still counts.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(_GrowingTar.flush, self._tars.values()))
        self.progress = Progress(
            position=position,
            num_row_files=self.progress.num_row_files + 1,
            num_bytes={number: tar.tar.num_bytes for number, tar in self._tars.items()},
            sha256={number: tar.tar.sha256() for number, tar in self._tars.items()},
            is_complete=end is not None,
            notices=tuple(end or ()),
        )
        self._journal.commit(self.progress, self._rows, self._notes)
        self._begin_interval()

    def finish(self, store: OutputStore) -> Iterator[WrittenShard]:
        """End every shard and give it to the store, with its record.

        Raises:
            OSError: The store or the folder cannot be written.
        """
        num_files = self.progress.num_row_files
        notes = self._journal.notes(num_files)
        num_threads = 1 if isinstance(store, LocalStore) else _UPLOADS_AT_ONCE
        numbers = [*self._tars]
        rows_of_shard = -(-self._journal.num_rows(num_files) // len(numbers))
        step = max(1, _ROWS_SORTED_AT_ONCE // max(1, rows_of_shard))
        for start in range(0, len(numbers), step):
            some = numbers[start : start + step]
            rows = self._journal.rows_of(some, num_files)
            finish_one = partial(self._finish_one, store, rows, notes)
            yield from read_ahead(finish_one, some, num_threads)

    def _begin_interval(self) -> None:
        self._rows = SampleRows()
        self._notes = Notes()
        self.waiting_bytes = 0

    def _go_on(self, progress: Progress) -> bool:
        """Cut the shards back to the checkpoint; False if they are not what it describes.

        A kill leaves them longer at most. They are shorter or others after what kills a disk, or
        when a finished shard got lost; then the stream is read anew.
        """
        if not self._tars.keys() <= progress.num_bytes.keys():
            return False
        with ThreadPoolExecutor(_THREADS) as threads:
            are_sound = threads.map(
                lambda number: self._tars[number].cut_back(
                    progress.num_bytes[number], progress.sha256[number]
                ),
                self._tars,
            )
            if not all(are_sound):
                return False
        tars = [tar.path.name for tar in self._tars.values()]
        self._journal.keep_only(progress, [LOCK_FILE, *tars])
        return True

    def _finish_one(
        self, store: OutputStore, rows: pa.Table, notes: Notes, number: int
    ) -> WrittenShard:
        shards = column_values(rows, "shard")
        start, end = (int(np.searchsorted(shards, number, side)) for side in ("left", "right"))
        growing = self._tars[number]
        growing.tar.close()
        shard = WrittenShard(
            number=number,
            num_images=end - start,
            num_bytes=growing.tar.num_bytes,
            sha256=growing.tar.sha256(),
            skipped=tuple(notes.skipped[number]),
            changes=dict(notes.changes[number]),
        )
        # The record comes first: a record without its shard is as good as none, while a shard that
        # has left this folder could not be finished again.
        ShardRecord(shard, rows.slice(start, end - start)).save(store)
        store.take(growing.path, staged_tar(number))
        return shard


class _GrowingTar:
    """A tar that is written in turns; between them its file is not open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # One buffer for all shards is counted elsewhere, so none writes by itself.
        self.tar = ShardTar(self, buffer_bytes=1 << 62)

    def write(self, data: bytes) -> int:
        """Append to the file, and see it on the disk."""
        with open(self.path, "ab", buffering=0) as file:
            view = memoryview(data)
            while view:  # a full disk, or 2 GiB at once, take a part only
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        return len(data)

    def flush(self) -> None:
        """Write what waits; raises OSError."""
        if self.tar.num_buffered:
            self.tar.flush()

    def cut_back(self, num_bytes: int, sha256: str) -> bool:
        """Forget what lies behind `num_bytes`; False if what is before is not as it was."""
        digest, left = hashlib.sha256(), num_bytes
        if not num_bytes:
            self.path.unlink(missing_ok=True)
            return True
        try:
            with open(self.path, "rb") as file:
                while left and (piece := file.read(min(left, _READ_AT_ONCE_BYTES))):
                    digest.update(piece)
                    left -= len(piece)
        except FileNotFoundError:
            return False
        if left or digest.hexdigest() != sha256:
            return False
        os.truncate(self.path, num_bytes)
        self.tar.go_on(num_bytes, digest)
        return True
