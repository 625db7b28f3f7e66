"""Labels of images that may show several classes, of which some are not known.

An image has classes that were verified to be there (positive), others that were verified to be
absent (negative), and nothing is known of the rest, which neither a loss nor a score may count.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
NO_SINGLE_LABEL = -1
"""What the column `label` holds for an image that has a label set instead."""
_NUMBERS = pa.large_list(pa.field("item", pa.int32(), nullable=False))
LABEL_SET_FIELDS = (
    pa.field("positive", _NUMBERS, nullable=False),
    pa.field("negative", _NUMBERS, nullable=False),
)


@dataclass(frozen=True)
class LabelSet:
    """Class numbers that an image was verified to show, and not to show; ascending."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]

    def as_json(self) -> bytes:
        """What the image's `.cls.json` member in a shard holds."""
        fields = {"positive": list(self.positive), "negative": list(self.negative)}
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> LabelSet:
        """Read a `.cls.json` member.

        Raises:
            ValueError: It does not hold two lists of numbers.
        """
        fields = json.loads(data)
        if not isinstance(fields, dict) or set(fields) != {"positive", "negative"}:
            raise ValueError("expected 'positive' and 'negative'")
        return cls(_numbers(fields["positive"]), _numbers(fields["negative"]))


class LabelSets:
    """The label sets of the rows of an index.

    `positive` and `negative` are (starts, numbers): row r has `numbers[starts[r]:starts[r + 1]]`.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take the two columns of an index, without copying them."""
        self.positive = _lists(table, "positive")
        self.negative = _lists(table, "negative")

    def of_row(self, row: int) -> LabelSet:
        """Both sets of an image."""
        return LabelSet(
            tuple(_of(self.positive, row).tolist()), tuple(_of(self.negative, row).tolist())
        )

    def known(self, row: int, num_classes: int) -> NDArray[np.int8]:
        """1 (present), 0 (absent) or -1 (unknown) for each class, shape (num_classes,)."""
        labels = np.full(num_classes, UNKNOWN, dtype=np.int8)
        labels[_of(self.negative, row)] = ABSENT
        labels[_of(self.positive, row)] = PRESENT
        return labels

    def counts(self, num_classes: int) -> NDArray[np.int64]:
        """Images that each class was verified to be in, shape (num_classes,)."""
        starts, numbers = self.positive
        return np.bincount(numbers[starts[0] : starts[-1]], minlength=num_classes)


class LabelSetColumns:
    """Columns of an index in the making, kept as packed numbers: there may be millions of rows."""

    def __init__(self) -> None:
        """Start without rows."""
        self._lists = {field.name: (array("q", [0]), array("i")) for field in LABEL_SET_FIELDS}

    def add(self, labels: LabelSet) -> None:
        """Append the sets of an image."""
        for name, (starts, numbers) in self._lists.items():
            numbers.extend(getattr(labels, name))
            starts.append(len(numbers))

    def columns(self) -> dict[str, pa.Array]:
        """The columns by name; none if no sets were added."""
        if len(self._lists["positive"][0]) == 1:
            return {}
        return {
            name: pa.LargeListArray.from_arrays(
                np.frombuffer(starts, np.int64), np.frombuffer(numbers, np.int32), type=_NUMBERS
            )
            for name, (starts, numbers) in self._lists.items()
        }


def bad_label_sets(table: pa.Table, num_classes: int) -> str | None:
    """What is wrong with the label sets of an index; None if nothing is."""
    for name in ("positive", "negative"):
        _, numbers = _lists(table, name)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= num_classes):
            return (
                f"index.parquet has {name} labels {numbers.min()}..{numbers.max()}, manifest.json "
                f"{num_classes} classes"
            )
    return None


def _lists(table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    column = table[name]
    # Not combined where it is one piece: that would copy, and a memory-mapped column stays on disk.
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    # pyarrow's own to_numpy would import pandas, for half a second.
    starts: NDArray[Any] = np.from_dlpack(column.offsets)
    numbers: NDArray[Any] = np.from_dlpack(column.values)
    return starts, numbers


def _of(lists: tuple[NDArray[np.int64], NDArray[np.int32]], row: int) -> NDArray[np.int32]:
    starts, numbers = lists
    return numbers[starts[row] : starts[row + 1]]


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{values!r} is not a list of class numbers")
    return tuple(values)
