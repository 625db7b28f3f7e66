"""Image-level labels of OpenImages: tens of millions of CSV rows, kept as packed numbers.

Rows are (ImageID, Source, LabelName, Confidence): confidence 1 is a class that a person saw in the
image, 0 one that a person looked for in vain; fractions are a classifier's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.label_sets import LabelSet
from data_pipeline.sources.input_files import InputFile

_COLUMNS = {"ImageID": pa.string(), "LabelName": pa.string(), "Confidence": pa.float32()}
_ID_LETTERS = 16
_READ_AT_ONCE_BYTES = 1 << 24
# What is known of an image and a class, as (image id, class, rank): the lowest rank counts.
_Labels = tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int8]]
_SEEN, _LOOKED_FOR_IN_VAIN, _GUESSED = 0, 1, 2


@dataclass(frozen=True)
class VerifiedLabels:
    """What is known of each image, by the 64-bit number that its hexadecimal id is.

    `images` (n,) uint64, ascending; the labels of image i are the slots starts[i] to starts[i + 1]
    of `classes` (int32, ascending within an image) and `is_positive`.
    """

    images: NDArray[np.uint64]
    starts: NDArray[np.int64]
    classes: NDArray[np.int32]
    is_positive: NDArray[np.bool_]

    def of_image(self, image_id: str) -> LabelSet | None:
        """The labels of an image; None if nothing is known of it."""
        try:
            number = np.uint64(int(image_id, 16))
        except (ValueError, OverflowError):
            return None
        place = int(np.searchsorted(self.images, number))
        if place == len(self.images) or self.images[place] != number:
            return None
        slots = slice(self.starts[place], self.starts[place + 1])
        classes, is_positive = self.classes[slots], self.is_positive[slots]
        return LabelSet(tuple(classes[is_positive].tolist()), tuple(classes[~is_positive].tolist()))


def read_verified_labels(
    human: Sequence[InputFile],
    machine: Sequence[InputFile],
    identifiers: Sequence[str],
    machine_confidence: float,
) -> VerifiedLabels:
    """Read the labels that are about the classes of `identifiers`.

    A person's word goes before a classifier's, and what was seen before what was looked for in
    vain. A classifier's label is positive from `machine_confidence` on, and nothing below it.

    Raises:
        RefusedInput: A file cannot be read or lacks a column, or an id or a confidence is none.
    """
    known = pa.array(identifiers, pa.string())
    parts: list[_Labels] = []
    for path in human:
        for images, classes, confidence in _batches(path, known):
            ranks = np.where(confidence == 0, _LOOKED_FOR_IN_VAIN, _SEEN)
            parts.append((images, classes, ranks.astype(np.int8)))
    for path in machine:
        for images, classes, confidence in _batches(path, known):
            kept = confidence >= machine_confidence
            ranks = np.full(int(kept.sum()), _GUESSED, np.int8)
            parts.append((images[kept], classes[kept], ranks))
    return _packed(parts)


def _packed(parts: list[_Labels]) -> VerifiedLabels:
    images = np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)])
    classes = np.concatenate([np.empty(0, np.int32), *(part[1] for part in parts)])
    ranks = np.concatenate([np.empty(0, np.int8), *(part[2] for part in parts)])
    parts.clear()
    order = np.lexsort((ranks, classes, images))
    images, classes, ranks = images[order], classes[order], ranks[order]
    is_first = np.ones(len(images), dtype=np.bool_)
    is_first[1:] = (images[1:] != images[:-1]) | (classes[1:] != classes[:-1])
    images, classes, ranks = images[is_first], classes[is_first], ranks[is_first]
    distinct, starts = np.unique(images, return_index=True)
    return VerifiedLabels(
        images=distinct,
        starts=np.append(starts, len(images)).astype(np.int64),
        classes=classes,
        is_positive=ranks != _LOOKED_FOR_IN_VAIN,
    )


def _batches(
    path: InputFile, known: pa.Array
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.float32]]]:
    """Image ids, class numbers and confidences of a file's rows about known classes."""
    try:
        with (
            path.open() as file,
            pa_csv.open_csv(
                file,
                read_options=pa_csv.ReadOptions(block_size=_READ_AT_ONCE_BYTES),
                convert_options=pa_csv.ConvertOptions(
                    column_types=_COLUMNS, include_columns=list(_COLUMNS)
                ),
            ) as reader,
        ):
            for batch in reader:
                numbers = pc.index_in(batch["LabelName"], value_set=known)
                kept = batch.filter(numbers.is_valid())
                confidence: NDArray[Any] = np.from_dlpack(kept["Confidence"])
                classes: NDArray[Any] = np.from_dlpack(numbers.drop_null())
                if np.any((confidence < 0) | (confidence > 1)):
                    raise ValueError("a confidence is not within 0..1")
                yield _image_numbers(kept["ImageID"]), classes, confidence
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RefusedInput(
            f"{path} is not a list of image-level labels (ImageID,Source,LabelName,Confidence): "
            f"{error}"
        ) from error


def _image_numbers(ids: pa.Array) -> NDArray[np.uint64]:
    if len(ids) and pc.any(pc.not_equal(pc.utf8_length(ids), _ID_LETTERS)).as_py():
        raise ValueError(f"an ImageID has not {_ID_LETTERS} hexadecimal digits")
    letters = "".join(ids.to_pylist())
    return np.frombuffer(bytes.fromhex(letters), ">u8").astype(np.uint64)
