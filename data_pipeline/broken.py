"""Broken images and shards: what counts as broken, how much is tolerated, where it is listed."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.durable_files import write_atomically
from configs.errors import RefusedInput

MIN_BROKEN_BUDGET_IMAGES = 10
_SHARDS_NAMED = 3


class BrokenImage(ValueError):
    """Bytes that cannot become an image; the message is the reason."""


class BrokenShard(ValueError):
    """A shard of which no image can be used; the message is the reason.

    Missing, not of the size or not with the digest that the manifest has: what lies at an image's
    offset could be another image than the one that the index gives a label to.
    """


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

    def know(self, records: Iterable[BrokenRecord]) -> None:
        """Note images that others have listed; these are not new."""
        with self._lock:
            for record in records:
                self._records.setdefault(record.row, record)

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


def check_broken_budget(
    broken: Collection[BrokenRecord],
    num_images: int,
    max_broken_fraction: float,
    *,
    option: str = "data.max_broken_fraction",
    listed_in: Path | None = None,
) -> None:
    """Refuse a dataset that has more broken images than the option allows.

    Args:
        broken: distinct broken images known on all ranks together.
        num_images: images of the (filtered) dataset.
        max_broken_fraction: tolerated share of them.
        option: how that is spelled, for the message.
        listed_in: file that lists them, for the message.

    Raises:
        RefusedInput: there are too many, or no other image is left; the message names the shards
            that lost most.
    """
    budget = broken_budget(num_images, max_broken_fraction)
    if len(broken) <= budget and len(broken) < num_images:
        return
    where = "" if listed_in is None else f" They are listed in {listed_in}."
    raise RefusedInput(
        f"{len(broken)} of {num_images} images cannot be read, more than the "
        f"{min(budget, num_images - 1)} that {option} = {max_broken_fraction} tolerates: "
        f"{told_by_shard(broken)}.{where} Put the files back, or raise the fraction; a new run can "
        "also use what `python -m data_pipeline.repair` leaves"
    )


def told_by_shard(broken: Collection[BrokenRecord]) -> str:
    """Which shards lost most images, with the first reason of each."""
    reasons: dict[str, str] = {}
    for record in broken:
        reasons.setdefault(record.shard, record.reason)
    counts = Counter(record.shard for record in broken).most_common()
    named = [
        f"{count} of shard {shard} ({reasons[shard]})" for shard, count in counts[:_SHARDS_NAMED]
    ]
    if len(counts) > _SHARDS_NAMED:
        named.append(f"the others of {len(counts) - _SHARDS_NAMED} more shards")
    return ", ".join(named)


def add_new_records(
    known: dict[int, BrokenRecord], found: Iterable[BrokenRecord]
) -> list[BrokenRecord]:
    """Add what ranks found to what is known by row; gives the new ones, by ascending row.

    The result does not depend on which rank met an image first, or how many did.
    """
    new = {record.row: record for record in found if record.row not in known}
    ordered = [new[row] for row in sorted(new)]
    known.update((record.row, record) for record in ordered)
    return ordered


def append_quarantine(path: Path, records: Iterable[BrokenRecord]) -> None:
    """Append records to a `quarantine.jsonl`, one JSON object a line, and sync it to disk."""
    lines = _lines(records)
    if not lines:
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def reset_quarantine(path: Path, records: Iterable[BrokenRecord]) -> None:
    """Let a `quarantine.jsonl` hold these records only: what a checkpoint knows.

    Going on from it meets again what was listed after it was saved.
    """
    lines = _lines(records)
    if lines or path.exists():
        write_atomically(path, lines)


def _lines(records: Iterable[BrokenRecord]) -> str:
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)
