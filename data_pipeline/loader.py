"""From a position to batches: `TrainLoader` without end, `EvalLoader` each image once.

Threads read and decode (both release the interpreter lock) straight into a batch of bytes that is
allocated beforehand, pinned where there is a GPU. Batches come in order and bounded in number.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from types import TracebackType

import numpy as np
import torch

from configs.data_groups import LoaderConfig
from configs.errors import RefusedInput
from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.batch import PADDING_ROW, Batch
from data_pipeline.batch_slots import fill_eval_slot, fill_train_slot
from data_pipeline.batch_threads import BatchThreads, PendingBatch
from data_pipeline.broken import BrokenList, BrokenRecord, check_broken_budget
from data_pipeline.image_reader import ImageReader, LoadingFailed
from data_pipeline.index import ShardedDataset
from data_pipeline.order import SampleOrder
from data_pipeline.passages import passages_of_order, passages_of_rows
from data_pipeline.worker_processes import num_usable_cores

__all__ = ["Batch", "EvalLoader", "LoadingFailed", "TrainLoader"]


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
        refuse_alone: refuse too many broken images in here. With several ranks, who trains checks
            what all of them give by `take_new_broken` before anything is saved, since a rank that
            stops alone leaves the others waiting; black images come until then.

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
    refuse_alone: bool = True

    def __post_init__(self) -> None:
        """Start the threads and the first batches."""
        identity = self.order.identity()
        digests = (identity["manifest_digest"], identity["filter_digest"])
        if digests != (self.dataset.digest, self.dataset.filter_digest):
            raise RefusedInput(
                f"the order was made for other images than those of {self.dataset.place} "
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
        self._met_ahead: deque[set[int]] = deque()  # broken rows met, of each pending batch
        self._reader.follow(passages_of_order(self.order, self.rank, self.world_size))
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
            RefusedInput: too many images are broken, if `refuse_alone`.
            LoadingFailed: anything else that went wrong in a thread, with shard and key.
        """
        if self._threads.closed:
            raise RuntimeError("the loader was closed")
        try:
            batch = self._threads.take()
            self._reader.note(self._met_ahead.popleft())
            _check_budget(self)
        except BaseException:
            self.close()
            raise
        self.position += self.batch_images * self.world_size
        self._read_ahead()
        return batch

    def skip_to(self, position: int, quarantine: Iterable[BrokenRecord] = ()) -> None:
        """Go on elsewhere, perhaps with a checkpoint's list; what was read ahead is dropped."""
        self._threads.cancel_all()
        self._reader.know(quarantine)
        self._met_ahead.clear()
        self.position = self._ahead = position
        self._read_ahead()

    def copy_ahead(self, device: torch.device) -> None:
        """Start copying the next batch to a GPU, if it is filled; it is not taken, nothing waits.

        Its `Batch.to` then gives that copy. On a CPU nothing is done.
        """
        batch = self._threads.next_filled()
        if batch is not None:
            batch.begin_copy(device)

    @property
    def broken(self) -> list[BrokenRecord]:
        """Broken images met up to `position` on this rank, with those given as `quarantine`."""
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

    @property
    def has_remote_shards(self) -> bool:
        """Whether any shard lies elsewhere, so that `remote_statistics` has something to say."""
        return self._reader.has_remote_shards

    def remote_statistics(self) -> dict[str, float]:
        """What remote shards cost since the last call (docs/remote.md); empty if there are none."""
        return self._reader.remote_statistics()

    def _read_ahead(self) -> None:
        self._reader.move_to(self.position)
        # Batches are allocated here, in the training thread: a thread of ours has no CUDA device.
        while len(self._threads) < self.loader.read_ahead_batches:
            positions = self.order.positions_of_rank(
                self._ahead, self.batch_images, self.rank, self.world_size
            )
            rows = self.order.rows_at(positions)
            slots = list(zip(positions.tolist(), rows.tolist(), strict=True))
            met: set[int] = set()
            self._met_ahead.append(met)
            fill = partial(fill_train_slot, self._reader, self.transform, slots, met)
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
        refuse_alone: refuse them in here, or leave it to who evaluates (see `TrainLoader`).
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
    refuse_alone: bool = True

    def __post_init__(self) -> None:
        """Start nothing before the first iteration."""
        self._known_broken = BrokenList()

    def __len__(self) -> int:
        """Batches of every rank."""
        return -(-self._images_of_rank() // self.batch_images)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of this rank.

        Raises:
            RefusedInput: too many images are broken, if `refuse_alone`.
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
            first, end = self._rows_of_rank()
            reader.follow(lambda _: passages_of_rows(self.dataset.shard, first, end))
            for number in range(len(self)):
                reader.move_to(first + number * self.batch_images)
                while submitted < min(number + self.loader.read_ahead_batches, len(self)):
                    threads.submit(self._pending(submitted, reader))
                    submitted += 1
                yield threads.take()
                _check_budget(self)
        finally:
            _close(threads, reader)

    @property
    def broken(self) -> list[BrokenRecord]:
        """The broken images that this rank knows of."""
        return self._known_broken.records()

    def _images_of_rank(self) -> int:
        return -(-self.dataset.num_images // self.world_size)

    def _rows_of_rank(self) -> tuple[int, int]:
        first = self._images_of_rank() * self.rank
        return first, min(first + self._images_of_rank(), self.dataset.num_images)

    def _pending(self, number: int, reader: ImageReader) -> PendingBatch:
        first, end = self._rows_of_rank()
        rows = first + self.batch_images * number + np.arange(self.batch_images)
        rows = np.where(rows < end, rows, PADDING_ROW)
        batch = Batch.empty(rows, self.transform.image_size, self.dataset.set_classes)
        fill = partial(fill_eval_slot, reader, self.transform, rows.tolist(), self._known_broken)
        return PendingBatch(batch, fill)


def _check_budget(loader: TrainLoader | EvalLoader) -> None:
    if loader.refuse_alone:
        num_images = loader.dataset.num_images
        check_broken_budget(loader.broken, num_images, loader.max_broken_fraction)


def _close(threads: BatchThreads, reader: ImageReader) -> None:
    # The reader first: it ends transfers that the threads may be waiting for.
    threads.cancel_all()
    reader.close()
    threads.close()
