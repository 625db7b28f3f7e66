"""From a row of the index to pixels, with a substitute where an image is broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.broken import (
    BrokenImage,
    BrokenList,
    BrokenRecord,
    broken_budget,
    check_broken_budget,
)
from data_pipeline.decode import decode_image
from data_pipeline.index import ShardedDataset
from data_pipeline.shard_reader import ShardReader

Decoded = TypeVar("Decoded", covariant=True)


class Decode(Protocol[Decoded]):
    """Makes something of an image file, or raises BrokenImage: a function of the bytes alone."""

    def __call__(self, data: bytearray, *, max_pixels: int) -> Decoded:
        """Decode; images of more than `max_pixels` are broken."""


class ImageReader:
    """Reads and decodes images from many threads, and notes the broken ones.

    Args:
        dataset: the images.
        max_pixels: larger images count as broken.
        broken: where broken images are noted; those already noted are not read again.
        max_broken_fraction: a search for a substitute that meets more broken images than this
            share of the dataset (at least 10) is given up.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        *,
        max_pixels: int,
        broken: BrokenList,
        max_broken_fraction: float,
    ) -> None:
        """Open nothing yet."""
        self._dataset = dataset
        self._max_pixels = max_pixels
        self._broken = broken
        self._max_broken_fraction = max_broken_fraction
        self._shards = ShardReader(dataset)

    def image(
        self,
        row: int,
        decode: Decode[Decoded] = decode_image,  # type: ignore[assignment]
    ) -> Decoded | None:
        """The image of a row, decoded (uint8 (3, height, width) unless `decode` says otherwise).

        None, and a note, if it is broken.

        Raises:
            RefusedInput: the shard is missing or too short.
        """
        if row in self._broken:
            return None
        data = self._shards.read(row)
        try:
            return decode(data, max_pixels=self._max_pixels)
        except BrokenImage as error:
            self._broken.add(self._record(row, str(error)))
            return None

    def readable_image(
        self,
        row: int,
        decode: Decode[Decoded] = decode_image,  # type: ignore[assignment]
    ) -> tuple[int, Decoded]:
        """The row, or the row that stands in for it if it is broken, and its decoded image.

        Raises:
            RefusedInput: a shard is missing or too short, or no substitute was found within the
                budget of broken images.
        """
        image = self.image(row, decode)
        if image is not None:
            return row, image
        for num_broken, substitute in enumerate(substitute_rows(self._dataset.shard, row), 1):
            self._check_search(num_broken)
            image = self.image(substitute, decode)
            if image is not None:
                return substitute, image
        raise RefusedInput(
            f"{self._dataset.folder}: none of its {self._dataset.num_images} images can be read; "
            f"the first reason is: {self._broken.records()[0].reason}"
        )

    def label(self, row: int) -> int | NDArray[np.int8]:
        """Class number of a row, or what is known of each class, as a batch has it."""
        if self._dataset.is_multi_label:
            return self._dataset.label_sets.known(row, self._dataset.num_classes)
        return int(self._dataset.label[row])

    def name(self, row: int) -> str:
        """Key and shard of a row, for messages."""
        shard = self._dataset.manifest.shards[self._dataset.shard[row]].path
        return f"image {self._dataset.key(row)} of shard {shard}"

    def close(self) -> None:
        """Close the shards."""
        self._shards.close()

    def _check_search(self, num_broken: int) -> None:
        num_images = self._dataset.num_images
        # Past the budget training stops anyway; a search without end would only hide why.
        if num_broken > broken_budget(num_images, self._max_broken_fraction):
            check_broken_budget(num_broken, num_images, self._max_broken_fraction)

    def _record(self, row: int, reason: str) -> BrokenRecord:
        shard = self._dataset.manifest.shards[self._dataset.shard[row]].path
        return BrokenRecord(row=row, shard=shard, key=self._dataset.key(row), reason=reason)


def substitute_rows(shard: np.ndarray, row: int) -> Iterator[int]:
    """Rows that may stand in for a broken one, in order: a function of the index only.

    First the following rows of the same shard, wrapping round to its start, then the rows of the
    next shard (the first shard follows the last), until every other row has been named.

    Args:
        shard: shard number of every row, ascending.
        row: the broken row.
    """
    first, end = np.searchsorted(shard, [shard[row], shard[row] + 1]).tolist()
    yield from range(row + 1, end)
    yield from range(first, row)
    yield from range(end, len(shard))
    yield from range(first)
