"""What a fleet of ranks reads, when and from which shards, worked out from the sample order alone.

A *reader* is a rank or a node. It holds a shard from the first to the last position of a stream's
passage through it (`SampleOrder.passages`), if it reads an image of it; passages through one shard
that overlap in time are one holding, hence one download where shards are kept in a cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import IntArray, SampleOrder

NUM_EPOCHS = 2  # the second shows what going on from one epoch to the next adds
# Bounds time: of more readers than fit, some that are evenly spread are worked out.
_PASSAGES_OF_ALL_READERS = 20_000_000
_FEWEST_READERS = 8


@dataclass(frozen=True)
class Fleet:
    """A dataset of equal shards and the ranks that read it.

    Attributes:
        images: Of the dataset.
        shards: Of the dataset; they differ by one image at most.
        image_bytes: Mean size of an image file.
        classes: Of equal size.
        world_size: Number of ranks.
        ranks_per_node: Ranks that share a node, and its cache.
        streams: `data.streams`.
        batch_images: Of one step over all ranks.
        images_per_second: Speed of training of one rank.
        seed: Of the run.
        cache_bytes: Size of the cache of shards on each node; None if not given.
        sorted: Whether the shards lie in order of class.
    """

    images: int
    shards: int
    image_bytes: float
    classes: int
    world_size: int
    ranks_per_node: int
    streams: int
    batch_images: int
    images_per_second: float
    seed: int
    cache_bytes: float | None = None
    sorted: bool = False

    @property
    def num_nodes(self) -> int:
        """Number of nodes; the last one may have fewer ranks."""
        return -(-self.world_size // self.ranks_per_node)

    @property
    def shard_bytes(self) -> float:
        """Mean size of a shard, without the tar's padding."""
        return self.images * self.image_bytes / self.shards

    @property
    def epoch_hours(self) -> float:
        """Time of a pass over the images, if reading never holds it up."""
        return self.images / (self.world_size * self.images_per_second) / 3600


def make_order(fleet: Fleet) -> SampleOrder:
    """The sample order of the fleet's run."""
    sizes = np.full(fleet.shards, fleet.images // fleet.shards)
    sizes[: fleet.images % fleet.shards] += 1
    images = SimpleNamespace(images_of_shards=sizes, digest="simulated", filter_digest="")
    return SampleOrder(images, num_streams=fleet.streams, seed=fleet.seed)


class Holdings(NamedTuple):
    """Which shards one reader holds when: int64 arrays of one length, by shard and time.

    `begin` and `end` (exclusive) are global positions.
    """

    shard: IntArray
    begin: IntArray
    end: IntArray


class Timetable:
    """The passages of all streams through shards in `NUM_EPOCHS` epochs, and who reads in them.

    Args:
        order: Of the run.
        is_fetched_ahead: A shard is held from the begin of its stream's passage before: what a
            cache needs that fetches the next shard of each stream in advance.
    """

    def __init__(self, order: SampleOrder, *, is_fetched_ahead: bool = False) -> None:
        """Ask the order for the passages."""
        self._num_streams = order.num_streams
        epochs = [order.passages(epoch) for epoch in range(NUM_EPOCHS)]
        first, last, shard = np.concatenate(epochs, axis=1)
        held_from = first
        if is_fetched_ahead:
            # An epoch's streams begin anew at its first positions.
            stream = first % order.num_images % order.num_streams
            held_from = _begin_of_the_one_before(stream, first)
        sorting = np.lexsort((held_from, shard))
        self._first, self._last, self._held_from, self._shard = (
            column[sorting] for column in (first, last, held_from, shard)
        )

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._first)

    def holdings(self, ranks: range, world_size: int) -> Holdings:
        """What one reader holds that consists of these ranks."""
        reads = np.zeros(len(self), dtype=bool)
        for rank in ranks:
            reads |= self._is_read_by(rank, world_size)
        shard, begin, end = self._shard[reads], self._held_from[reads], self._last[reads] + 1
        is_other = np.diff(shard, prepend=-1) != 0
        # Ends in different shards are moved apart, so that one running maximum serves all.
        apart = np.cumsum(is_other) * (int(end.max(initial=0)) + 1)
        latest = np.maximum.accumulate(end + apart) - apart
        is_new = is_other.copy()
        is_new[1:] |= begin[1:] > latest[:-1]
        starts = np.flatnonzero(is_new)
        ends = np.maximum.reduceat(end, starts) if len(starts) else end
        return Holdings(shard[starts], begin[starts], ends)

    def _is_read_by(self, rank: int, world_size: int) -> NDArray[np.bool_]:
        """Whether one of first, first + S, ..., last is congruent to the rank modulo W."""
        shared = math.gcd(self._num_streams, world_size)
        round_of_ranks = world_size // shared
        inverse = pow(self._num_streams // shared, -1, round_of_ranks)
        distance, rest = np.divmod(rank - self._first, shared)
        step = distance * inverse % round_of_ranks
        return (rest == 0) & (self._first + step * self._num_streams <= self._last)


def _begin_of_the_one_before(stream: IntArray, begin: IntArray) -> IntArray:
    by_stream = np.lexsort((begin, stream))
    has_one = np.diff(stream[by_stream]) == 0
    before = begin.copy()
    before[by_stream[1:][has_one]] = begin[by_stream[:-1][has_one]]
    return before


class Usage(NamedTuple):
    """What readers did over `NUM_EPOCHS` epochs: arrays of one length, a value per reader.

    Attributes:
        downloads: Holdings begun in an epoch, on average.
        most_held: Most shards held at a time.
        mean_held: Mean over time of the shards held.
    """

    downloads: NDArray[np.float64]
    most_held: IntArray
    mean_held: NDArray[np.float64]


def spread_readers(timetable: Timetable, fleet: Fleet, ranks_per_reader: int) -> list[range]:
    """The ranks of each reader; of more readers than can be worked out, evenly spread ones."""
    num_readers = -(-fleet.world_size // ranks_per_reader)
    limit = max(_FEWEST_READERS, _PASSAGES_OF_ALL_READERS // len(timetable))
    chosen = np.linspace(0, num_readers - 1, min(limit, num_readers)).round().astype(int)
    starts = (chosen * ranks_per_reader).tolist()
    return [range(start, min(start + ranks_per_reader, fleet.world_size)) for start in starts]


def usage(timetable: Timetable, fleet: Fleet, readers: list[range]) -> Usage:
    """How many shards each reader downloads and holds."""
    found = [_usage(timetable.holdings(ranks, fleet.world_size)) for ranks in readers]
    downloads, most, mean = zip(*found, strict=True)
    # All readers are at work until the last epoch's last position.
    duration = NUM_EPOCHS * fleet.images
    return Usage(np.array(downloads), np.array(most), np.array(mean) / duration)


def _usage(held: Holdings) -> tuple[float, int, int]:
    """Downloads in an epoch, most shards at a time, shards times positions."""
    begins, ends = np.sort(held.begin), np.sort(held.end)
    # What ends at a position makes room for what begins there.
    gone = np.searchsorted(ends, begins, side="right")
    at_a_time = np.arange(1, len(begins) + 1) - gone
    return (
        len(begins) / NUM_EPOCHS,
        int(at_a_time.max(initial=0)),
        int((held.end - held.begin).sum()),
    )


def held_at(timetable: Timetable, world_size: int, ranks: range, position: int) -> set[int]:
    """The shards that a reader holds at one position."""
    held = timetable.holdings(ranks, world_size)
    return set(held.shard[(held.begin <= position) & (position < held.end)].tolist())
