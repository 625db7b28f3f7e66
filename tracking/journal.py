"""Append-only files of JSON lines: what a run recorded, whatever became of the network.

A line counts once its newline is written. A process that is killed can leave one torn last line;
the next writer cuts it off, readers never see it.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.durable_files import write_atomically

logger = logging.getLogger(__name__)
Row = dict[str, Any]


class Journal:
    """Writer of one journal file; `append` is safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending, made if missing, with a torn last line cut off."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._pending = b""
        self._has_warned = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._size = _end_of_last_line(path)
        os.ftruncate(self._descriptor, self._size)

    def append(self, row: Row) -> None:
        """Write one row. A full disk does not raise: the row waits for the next one."""
        line = json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"
        with self._lock:
            self._pending += line.encode()
            try:
                self._write_pending()
            except OSError as error:
                if not self._has_warned:
                    logger.warning("cannot write %s (%s); rows wait in memory", self.path, error)
                self._has_warned = True

    def _write_pending(self) -> None:
        try:
            written = 0
            while written < len(self._pending):
                written += os.write(self._descriptor, self._pending[written:])
        except OSError:
            # Without this a reader would take the torn line and the next row for one.
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(self._pending)
        self._pending = b""

    def close(self) -> None:
        """Flush to the disk itself and close; a second call does nothing."""
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                self._write_pending()
                os.fsync(self._descriptor)
            except OSError as error:
                logger.warning("cannot flush %s: %s", self.path, error)
            os.close(self._descriptor)
            self._descriptor = -1


def _end_of_last_line(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def read_rows(path: Path, offset: int = 0) -> Iterator[tuple[Row, int]]:
    """Complete rows from a byte offset on, each with the offset after it.

    A missing file has no rows. A damaged line (a power cut) is reported and passed over.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row, offset
            else:
                logger.warning("%s: a damaged line before byte %d is passed over", path, offset)


def count_rows(path: Path, offset: int = 0) -> int:
    """Number of complete lines after a byte offset."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def encode_number(value: float) -> float | str:
    """A float as JSON has it: numbers as they are, the others as "nan", "inf", "-inf"."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def write_json(path: Path, content: Row) -> None:
    """Replace a JSON file in one step: readers find the old or the new content, never a part."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Row:
    """The object in a JSON file; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
