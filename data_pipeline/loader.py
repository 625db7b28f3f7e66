"""From a position to batches: `TrainLoader` without end, `EvalLoader` each image once.

Threads read and decode (both release the interpreter lock) straight into a batch of bytes that is
allocated beforehand, pinned where there is a GPU. Batches come in order and bounded in number.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from types import TracebackType

import numpy as np

from configs.errors import RefusedInput
from configs.groups import LoaderConfig
from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.batch import PADDING_ROW, Batch
from data_pipeline.batch_threads import BatchThreads, PendingBatch
from data_pipeline.broken import BrokenList, BrokenRecord, check_broken_budget
from data_pipeline.decode import decode_image
from data_pipeline.image_reader import ImageReader
from data_pipeline.index import ShardedDataset
from data_pipeline.order import SampleOrder
from data_pipeline.worker_processes import num_usable_cores


class LoadingFailed(RuntimeError):
    """An image could not be loaded for another reason than its own bytes; names shard and key."""


@dataclass(eq=False, repr=False)
class TrainLoader:
    """Batches of one rank's positions, without end; its whole state is `position`.

    Args:
        dataset: the images, possibly filtered.
        order: of the same dataset.
        transform: makes the view of an image at a position.
        batch_images: images of a batch of this rank.
        rank: of this process.
        world_size: number of ranks; each takes the positions congruent to its rank.
        position: global position of the next batch; moves on by batch_images x world_size.
        loader: threads (None means every core of this process), read-ahead, largest image.
        threads: decoding threads, if they are not to be `loader.threads`.
        max_broken_fraction: `data.max_broken_fraction`.
        quarantine: broken images known from a checkpoint.

    Raises:
        RefusedInput: the order belongs to another dataset.
    """

    dataset: ShardedDataset
    order: SampleOrder
    _: KW_ONLY
    transform: TrainTransform
    batch_images: int
    rank: int = 0
    world_size: int = 1
    position: int = 0
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    threads: int | None = None
    max_broken_fraction: float = 0.001
    quarantine: Sequence[BrokenRecord] | None = None

    def __post_init__(self) -> None:
        """Start the threads and the first batches."""
        identity = self.order.identity()
        digests = (identity["manifest_digest"], identity["filter_digest"])
        if digests != (self.dataset.digest, self.dataset.filter_digest):
            raise RefusedInput(
                f"the order was made for other images than those of {self.dataset.folder} "
                "(another dataset or another filter)"
            )
        self._known_broken = BrokenList(self.quarantine or ())
        self._reader = ImageReader(
            self.dataset,
            max_pixels=self.loader.max_image_pixels,
            broken=self._known_broken,
            max_broken_fraction=self.max_broken_fraction,
        )
        self._ahead = self.position
        self._threads = BatchThreads(self.threads or self.loader.threads or num_usable_cores())
        # Also ends the threads of a loader that nobody closed, at the latest when Python exits.
        self._finalizer = weakref.finalize(self, _close, self._threads, self._reader)
        self._read_ahead()

    def __iter__(self) -> TrainLoader:
        """The loader is its own iterator."""
        return self

    def __next__(self) -> Batch:
        """The batch at `position`, after which `position` stands behind it.

        Raises:
            RefusedInput: a shard is missing or too short, or too many images are broken.
            LoadingFailed: anything else that went wrong in a thread, with shard and key.
        """
        if self._threads.closed:
            raise RuntimeError("the loader was closed")
        try:
            batch = self._threads.take()
        except BaseException:
            self.close()
            raise
        self.position += self.batch_images * self.world_size
        self._read_ahead()
        return batch

    def skip_to(self, position: int) -> None:
        """Go on at another global position; what was read ahead is dropped."""
        self._threads.cancel_all()
        self.position = self._ahead = position
        self._read_ahead()

    @property
    def broken(self) -> list[BrokenRecord]:
        """The broken images that this rank knows of, with those given as `quarantine`."""
        return self._known_broken.records()

    def take_new_broken(self) -> list[BrokenRecord]:
        """The broken images found since the last call."""
        return self._known_broken.take_new()

    def close(self) -> None:
        """End the threads and close the shards; may be called again."""
        self._finalizer()

    def __enter__(self) -> TrainLoader:
        """Close the loader when the block is left, however it is left."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the loader."""
        self.close()

    def _read_ahead(self) -> None:
        # Batches are allocated here, in the training thread: a thread of ours has no CUDA device.
        while len(self._threads) < self.loader.read_ahead_batches:
            positions = self.order.positions_of_rank(
                self._ahead, self.batch_images, self.rank, self.world_size
            )
            rows = self.order.rows_at(positions)
            slots = list(zip(positions.tolist(), rows.tolist(), strict=True))
            fill = partial(_fill_train, self._reader, self.transform, slots)
            batch = Batch.empty(positions, self.transform.image_size, self.dataset.set_classes)
            self._threads.submit(PendingBatch(batch, fill))
            self._ahead += self.batch_images * self.world_size


@dataclass(eq=False, repr=False)
class EvalLoader:
    """Batches that hold each image exactly once over all ranks; may be iterated again.

    Rank r has the r-th of `world_size` consecutive parts of the index. Every rank gives the same
    number of batches of the full shape (a forward pass may be a collective operation); what is
    missing is padding with label -1. A broken image is padding too: it is listed in `broken`, and
    not scored, because a substitute would be counted twice.

    Args:
        dataset: the images, possibly filtered.
        transform: makes the view of an image.
        batch_images: images of a batch of this rank, padding included.
        rank: of this process.
        world_size: number of ranks.
        loader: threads (None means every core of this process), read-ahead, largest image.
        threads: decoding threads, if they are not to be `loader.threads`.
        max_broken_fraction: more broken images than this share (at least 10) are refused.
    """

    dataset: ShardedDataset
    _: KW_ONLY
    transform: EvalTransform
    batch_images: int
    rank: int = 0
    world_size: int = 1
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    threads: int | None = None
    max_broken_fraction: float = 0.001

    def __post_init__(self) -> None:
        """Start nothing before the first iteration."""
        self._known_broken = BrokenList()

    def __len__(self) -> int:
        """Batches of every rank."""
        return -(-self._images_of_rank() // self.batch_images)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of this rank.

        Raises:
            RefusedInput: a shard is missing or too short, or too many images are broken.
            LoadingFailed: anything else that went wrong in a thread, with shard and key.
        """
        reader = ImageReader(
            self.dataset,
            max_pixels=self.loader.max_image_pixels,
            broken=self._known_broken,
            max_broken_fraction=self.max_broken_fraction,
        )
        threads = BatchThreads(self.threads or self.loader.threads or num_usable_cores())
        try:
            submitted = 0
            for number in range(len(self)):
                while submitted < min(number + self.loader.read_ahead_batches, len(self)):
                    threads.submit(self._pending(submitted, reader))
                    submitted += 1
                yield threads.take()
                check_broken_budget(
                    len(self._known_broken), self.dataset.num_images, self.max_broken_fraction
                )
        finally:
            _close(threads, reader)

    @property
    def broken(self) -> list[BrokenRecord]:
        """The broken images that this rank knows of."""
        return self._known_broken.records()

    def take_new_broken(self) -> list[BrokenRecord]:
        """The broken images found since the last call."""
        return self._known_broken.take_new()

    def _images_of_rank(self) -> int:
        return -(-self.dataset.num_images // self.world_size)

    def _pending(self, number: int, reader: ImageReader) -> PendingBatch:
        part = self._images_of_rank()
        rows = part * self.rank + self.batch_images * number + np.arange(self.batch_images)
        end = min(part * (self.rank + 1), self.dataset.num_images)
        rows = np.where(rows < end, rows, PADDING_ROW)
        batch = Batch.empty(rows, self.transform.image_size, self.dataset.set_classes)
        return PendingBatch(batch, partial(_fill_eval, reader, self.transform, rows.tolist()))


def _fill_train(
    reader: ImageReader,
    transform: TrainTransform,
    slots: list[tuple[int, int]],
    batch: Batch,
    slot: int,
) -> None:
    position, row = slots[slot]
    with _named(reader, row):
        row, image = reader.readable_image(row, partial(transform.decode, position=position))
        transform(image, position, batch.images[slot])
    batch.set_source(slot, row, reader.label(row))


def _fill_eval(
    reader: ImageReader, transform: EvalTransform, rows: list[int], batch: Batch, slot: int
) -> None:
    row, image = rows[slot], None
    if row != PADDING_ROW:
        with _named(reader, row):
            image = reader.image(row, decode_image)
            if image is not None:
                transform(image, batch.images[slot])
                batch.set_source(slot, row, reader.label(row))
    if image is None:
        batch.images[slot].zero_()


@contextmanager
def _named(reader: ImageReader, row: int) -> Iterator[None]:
    """Say of which image an unforeseen error is; it is raised far from here."""
    try:
        yield
    except RefusedInput:
        raise
    except Exception as error:
        raise LoadingFailed(
            f"loading {reader.name(row)} failed: {type(error).__name__}: {error}"
        ) from error


def _close(threads: BatchThreads, reader: ImageReader) -> None:
    threads.close()
    reader.close()
