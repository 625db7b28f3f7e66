"""The numbers of a simulated run: what its ranks and nodes read, and what another number costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.order import SampleOrder
from data_pipeline.simulation import (
    Fleet,
    Timetable,
    Usage,
    held_at,
    spread_readers,
    usage,
)

# Fetching ahead uses 80 % of a cache: the rest is for evaluation and for what is being replaced.
_ROOM_IN_CACHE = 1.25


@dataclass(frozen=True)
class Spread:
    """Of one quantity over the ranks, the nodes or time."""

    fewest: float
    mean: float
    most: float


@dataclass(frozen=True)
class Reading:
    """What one choice of shards, streams and ranks makes the ranks and nodes read.

    Attributes:
        epoch_hours: Time of a pass over the images, if reading never holds it up.
        shard_bytes: Mean size of a shard.
        nodes: Number of nodes.
        images_of_rank: Images of a rank in an epoch.
        open_shards_of_rank: Shards that a rank reads from at a time.
        open_shards_of_node: Shards that all ranks of a node read from at a time, each once.
        opened_by_node_and_hour: Shard files that the ranks of a node open.
        downloads_of_node_and_epoch: Shards that a node downloads into a cache.
        downloads_of_a_shard: By all nodes in an epoch; 1 is ideal.
        fetched_bytes_of_node_and_hour: With a cache.
        straight_bytes_of_node_and_hour: Without one, by byte ranges, or from a shared file system.
        cached_shards_of_node: Shards that a cache holds at a time, the next of each stream too.
        cache_bytes_of_node: Size of cache with which no shard is downloaded while it is still read.
        exact: False if only some evenly spread readers were worked out.
    """

    epoch_hours: float
    shard_bytes: float
    nodes: int
    images_of_rank: Spread
    open_shards_of_rank: Spread
    open_shards_of_node: Spread
    opened_by_node_and_hour: float
    downloads_of_node_and_epoch: Spread
    downloads_of_a_shard: float
    fetched_bytes_of_node_and_hour: Spread
    straight_bytes_of_node_and_hour: float
    cached_shards_of_node: Spread
    cache_bytes_of_node: float
    exact: bool


class Simulation:
    """The order of a run, at full scale, and who reads what in it."""

    def __init__(self, fleet: Fleet, order: SampleOrder) -> None:
        """Work out the passages, which no number of ranks changes."""
        self._order = order
        self._read = Timetable(order)
        self._cached = Timetable(order, is_fetched_ahead=True)
        self.reading = self.reading_of(fleet)

    def reading_of(self, fleet: Fleet) -> Reading:
        """What the ranks and nodes of a fleet read, of the same images, shards and streams."""
        ranks = spread_readers(self._read, fleet, 1)
        nodes = spread_readers(self._read, fleet, fleet.ranks_per_node)
        by_rank = usage(self._read, fleet, ranks)
        by_node = usage(self._read, fleet, nodes)
        cached = usage(self._cached, fleet, nodes)
        per_hour = fleet.shard_bytes / fleet.epoch_hours
        downloads = _spread(by_node.downloads)
        return Reading(
            epoch_hours=fleet.epoch_hours,
            shard_bytes=fleet.shard_bytes,
            nodes=fleet.num_nodes,
            images_of_rank=_images_of_ranks(fleet),
            open_shards_of_rank=_held(by_rank),
            open_shards_of_node=_held(by_node),
            opened_by_node_and_hour=float(by_rank.downloads.mean())
            * min(fleet.ranks_per_node, fleet.world_size)
            / fleet.epoch_hours,
            downloads_of_node_and_epoch=downloads,
            downloads_of_a_shard=downloads.mean * fleet.num_nodes / fleet.shards,
            fetched_bytes_of_node_and_hour=_spread(by_node.downloads * per_hour),
            straight_bytes_of_node_and_hour=fleet.images
            * fleet.image_bytes
            / fleet.epoch_hours
            / fleet.num_nodes,
            cached_shards_of_node=_held(cached),
            cache_bytes_of_node=int(cached.most_held.max()) * fleet.shard_bytes * _ROOM_IN_CACHE,
            exact=len(ranks) == fleet.world_size and len(nodes) == fleet.num_nodes,
        )

    def change(self, old: Fleet, new: Fleet) -> Change:
        """What going on with another fleet costs, half way through the first epoch."""
        half = self._order.num_images // 2
        needed, fresh = [], []
        for ranks in spread_readers(self._read, new, new.ranks_per_node):
            now = held_at(self._read, new.world_size, ranks, half)
            # The node had these ranks before; a new node has an empty cache.
            were = range(ranks.start, min(ranks.start + old.ranks_per_node, old.world_size))
            needed.append(len(now))
            fresh.append(len(now - held_at(self._read, old.world_size, were, half)))
        missing = float(np.mean(fresh))
        return Change(
            world_size=new.world_size,
            reading=self.reading_of(new),
            shards_needed_at_once=float(np.mean(needed)),
            shards_not_in_cache=missing,
            bytes_not_in_cache=missing * new.shard_bytes,
        )


@dataclass(frozen=True)
class Change:
    """What it costs to go on with another number of ranks. Images and their order stay the same.

    Attributes:
        world_size: The new number of ranks.
        reading: What is read from then on.
        shards_needed_at_once: Of a node, before its first batch.
        shards_not_in_cache: Those of them that the node did not hold before.
        bytes_not_in_cache: Their size.
    """

    world_size: int
    reading: Reading
    shards_needed_at_once: float
    shards_not_in_cache: float
    bytes_not_in_cache: float


def _images_of_ranks(fleet: Fleet) -> Spread:
    """Of the first epoch: positions congruent to each rank, which differ by one at most."""
    fewest, more = divmod(fleet.images, fleet.world_size)
    return Spread(fewest, fleet.images / fleet.world_size, fewest + (more > 0))


def _spread(values: np.ndarray) -> Spread:
    return Spread(float(values.min()), float(values.mean()), float(values.max()))


def _held(used: Usage) -> Spread:
    return Spread(
        float(used.mean_held.min()), float(used.mean_held.mean()), int(used.most_held.max())
    )
