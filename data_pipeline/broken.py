"""Broken images: what counts as one, how many are tolerated, and where they are listed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.errors import RefusedInput

MIN_BROKEN_BUDGET_IMAGES = 10


class BrokenImage(ValueError):
    """Bytes that cannot become an image; the message is the reason."""


@dataclass(frozen=True)
class BrokenRecord:
    """One unreadable image: its row in the (filtered) index, shard file, key, and the reason."""

    row: int
    shard: str
    key: str
    reason: str


class BrokenList:
    """The broken images that one rank knows of, each once; safe to use from many threads."""

    def __init__(self, known: Iterable[BrokenRecord] = ()) -> None:
        """Start from the images a checkpoint lists; these are not new again."""
        self._records = {record.row: record for record in known}
        self._new: list[BrokenRecord] = []
        self._lock = threading.Lock()

    def __contains__(self, row: int) -> bool:
        """Whether a row is known to be broken."""
        return row in self._records

    def __len__(self) -> int:
        """Number of distinct broken images."""
        return len(self._records)

    def add(self, record: BrokenRecord) -> None:
        """Note a broken image; a second record of the same row is ignored."""
        with self._lock:
            if record.row not in self._records:
                self._records[record.row] = record
                self._new.append(record)

    def records(self) -> list[BrokenRecord]:
        """All known records, oldest first."""
        with self._lock:
            return list(self._records.values())

    def take_new(self) -> list[BrokenRecord]:
        """The records added since the last call."""
        with self._lock:
            new, self._new = self._new, []
            return new


def broken_budget(num_images: int, max_broken_fraction: float) -> int:
    """Number of distinct broken images that a dataset may have: max(10, fraction x images)."""
    return max(MIN_BROKEN_BUDGET_IMAGES, int(max_broken_fraction * num_images))


def check_broken_budget(num_broken: int, num_images: int, max_broken_fraction: float) -> None:
    """Refuse a dataset that has more broken images than `data.max_broken_fraction` allows.

    Args:
        num_broken: distinct broken images known on all ranks together.
        num_images: images of the (filtered) dataset.
        max_broken_fraction: tolerated share of them.

    Raises:
        RefusedInput: there are too many.
    """
    budget = broken_budget(num_images, max_broken_fraction)
    if num_broken > budget:
        raise RefusedInput(
            f"{num_broken} of {num_images} images cannot be read, more than the {budget} that "
            f"data.max_broken_fraction = {max_broken_fraction} tolerates; they are listed in "
            "quarantine.jsonl of the run folder; repair the data or raise the fraction"
        )


def append_quarantine(path: Path, records: Iterable[BrokenRecord]) -> None:
    """Append records to a `quarantine.jsonl`, one JSON object a line, and sync it to disk."""
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    if not lines:
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
