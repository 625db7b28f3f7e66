"""From a row of the index to pixels, with a substitute where an image is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.broken import (
    BrokenImage,
    BrokenList,
    BrokenRecord,
    BrokenShard,
    broken_budget,
)
from data_pipeline.decode import decode_image
from data_pipeline.index import ShardedDataset
from data_pipeline.location import redacted
from data_pipeline.shard_reader import ShardReader

if TYPE_CHECKING:
    from data_pipeline.passages import Passages

Decoded = TypeVar("Decoded", covariant=True)


class Decode(Protocol[Decoded]):
    """Makes something of an image file, or raises BrokenImage: a function of the bytes alone."""

    def __call__(self, data: bytearray, *, max_pixels: int) -> Decoded:
        """Decode; images of more than `max_pixels` are broken."""


class LoadingFailed(RuntimeError):
    """An image could not be loaded for another reason than its own bytes; names shard and key."""


class ImageReader:
    """Reads and decodes images from many threads.

    Threads run ahead of training by an amount that depends on their luck. So what they find broken
    is kept here, and gets into the list of broken images by `note`, when training takes a batch:
    what the list holds at a position depends on nothing but the position.

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
        self._budget = broken_budget(dataset.num_images, max_broken_fraction)
        self._shards = ShardReader(dataset)
        self._image_reasons: dict[int, str] = {}
        self._shard_reasons: dict[int, str] = {}
        self.know(broken.records())

    def know(self, records: Iterable[BrokenRecord]) -> None:
        """Do not read these images any more, nor shards of which all are known to be broken."""
        self._broken.know(records)
        self._image_reasons |= {record.row: record.reason for record in self._broken.records()}
        self._shard_reasons |= self._lost_shards()

    def image(
        self,
        row: int,
        decode: Decode[Decoded] = decode_image,  # type: ignore[assignment]
    ) -> Decoded | None:
        """The image of a row, decoded (uint8 (3, height, width) unless `decode` says otherwise).

        None if it or its shard is broken.
        """
        shard = int(self._dataset.shard[row])
        if row in self._image_reasons or shard in self._shard_reasons:
            return None
        try:
            return decode(self._shards.read(row), max_pixels=self._max_pixels)
        except BrokenImage as error:
            self._image_reasons[row] = str(error)
        except BrokenShard as error:
            self._shard_reasons[shard] = str(error)
        return None

    def readable_image(
        self,
        row: int,
        met: set[int],
        decode: Decode[Decoded] = decode_image,  # type: ignore[assignment]
    ) -> tuple[int, Decoded] | None:
        """The row, or the row that stands in for it if it is broken, and its decoded image.

        Args:
            row: the wanted one.
            met: takes up the broken rows met on the way, of a broken shard the first only.
            decode: makes something of a file.

        Returns:
            None if the search met more broken images than are tolerated: training has to stop, and
            a search without end would only hide why.
        """
        image = self.image(row, decode)
        if image is not None:
            return row, image
        met.add(row)
        num_broken = len(self._lost_with(row))
        for span in substitute_spans(self._dataset.shard, row):
            for substitute in span:
                if num_broken > self._budget:
                    return None
                image = self.image(substitute, decode)
                if image is not None:
                    return substitute, image
                met.add(substitute)
                if int(self._dataset.shard[substitute]) in self._shard_reasons:
                    is_own_shard = self._dataset.shard[substitute] == self._dataset.shard[row]
                    num_broken += 0 if is_own_shard else len(span)
                    break
                num_broken += 1
        return None

    def note(self, met: Iterable[int]) -> None:
        """List broken rows, and with a row of a broken shard all images of the shard.

        Past the budget nothing more is listed, so that a lost file system fills no memory.
        """
        for row in sorted(met):
            if row not in self._broken:
                for lost in self._lost_with(row):
                    self._broken.add(self.record(lost))
            if len(self._broken) > self._budget:
                return

    def record(self, row: int) -> BrokenRecord:
        """Where a row that is known to be broken lies, and the reason."""
        number = int(self._dataset.shard[row])
        # A shard's reason first: it holds for all of its images, whoever met which before.
        reason = self._shard_reasons.get(number) or self._image_reasons[row]
        shard = redacted(self._dataset.manifest.shards[number].path)
        return BrokenRecord(row=row, shard=shard, key=self._dataset.key(row), reason=reason)

    def label(self, row: int) -> int | NDArray[np.int8]:
        """Class number of a row, or what is known of each class, as a batch has it."""
        if self._dataset.is_multi_label:
            return self._dataset.label_sets.known(row, self._dataset.num_classes)
        return int(self._dataset.label[row])

    def name(self, row: int) -> str:
        """Key and shard of a row, for messages."""
        shard = self._dataset.manifest.shards[self._dataset.shard[row]].path
        return f"image {self._dataset.key(row)} of shard {redacted(shard)}"

    @property
    def has_remote_shards(self) -> bool:
        """Whether any shard lies elsewhere."""
        return self._shards.has_remote_shards

    def follow(self, passages_from: Callable[[int], Passages]) -> None:
        """Fetch remote shards ahead of where reading stands, if there are any."""
        if self._shards.has_remote_shards:
            self._shards.remote.follow(passages_from)

    def move_to(self, place: int) -> None:
        """Say where reading stands, for what `follow` was given."""
        if self._shards.has_remote_shards:
            self._shards.remote.move_to(place)

    def remote_statistics(self) -> dict[str, float]:
        """What remote shards cost since the last call; empty if there are none."""
        if not self._shards.has_remote_shards:
            return {}
        return self._shards.remote.statistics.read_and_reset()

    def close(self) -> None:
        """Close the shards."""
        self._shards.close()

    def _lost_with(self, row: int) -> range:
        """The rows that are broken if this one is: itself, or all of a broken shard."""
        if int(self._dataset.shard[row]) in self._shard_reasons:
            return rows_of_shard(self._dataset.shard, row)
        return range(row, row + 1)

    def _lost_shards(self) -> dict[int, str]:
        """Shards of which every image is known to be broken, with the first one's reason."""
        rows = np.array(sorted(self._image_reasons), dtype=np.int64)
        numbers, num_broken = np.unique(self._dataset.shard[rows], return_counts=True)
        first_and_end = np.searchsorted(self._dataset.shard, [numbers, numbers + 1])
        return {
            int(number): self._image_reasons[int(first)]
            for number, count, first, end in zip(numbers, num_broken, *first_and_end, strict=True)
            if count == end - first
        }


def rows_of_shard(shard: np.ndarray, row: int) -> range:
    """The rows that lie in the same shard as `row`; `shard` ascending, one number a row."""
    first, end = np.searchsorted(shard, [shard[row], shard[row] + 1]).tolist()
    return range(first, end)


def substitute_spans(shard: np.ndarray, row: int) -> Iterator[range]:
    """Rows that may stand in for a broken one, in order: a function of the index only.

    First the following rows of the same shard, wrapping round to its start, then the rows of the
    next shard (the first shard follows the last), until every other row has been named. No span
    goes over the edge of a shard.

    Args:
        shard: shard number of every row, ascending.
        row: the broken row.
    """
    own = rows_of_shard(shard, row)
    yield range(row + 1, own.stop)
    yield range(own.start, row)
    start = own.stop % len(shard)
    while start != own.start:
        following = rows_of_shard(shard, start)
        yield following
        start = following.stop % len(shard)


@contextmanager
def naming(reader: ImageReader, row: int) -> Iterator[None]:
    """Say of which image an unforeseen error is; it is raised far from here."""
    try:
        yield
    except RefusedInput:
        raise
    except Exception as error:
        raise LoadingFailed(
            f"loading {reader.name(row)} failed: {type(error).__name__}: {error}"
        ) from error
