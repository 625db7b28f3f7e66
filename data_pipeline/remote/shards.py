"""Reads images of remote shards, straight or through the cache of the node."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from data_pipeline.location import COMMAND_PREFIX
from data_pipeline.manifest import ShardEntry
from data_pipeline.remote.cache import ShardCache
from data_pipeline.remote.faults import ShardUnavailable, ShardWrong
from data_pipeline.remote.fetch_ahead import FetchAhead
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import Transfers

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_pipeline.dataset import ShardedDataset
    from data_pipeline.passages import Passages

# Of a rank's share of the cache; the rest is for shards that evaluation reads, and for those that
# came a little late.
_SHARE_FETCHED_AHEAD = 0.8
_TRIES = 3


class RemoteShards:
    """The remote shards of a dataset.

    Args:
        dataset: names the shards, their sizes and digests, and says how they are reached.
    """

    def __init__(self, dataset: ShardedDataset) -> None:
        """Connect to nothing yet; make the cache's folder if there is one.

        Raises:
            RefusedInput: The cache's folder cannot be written.
        """
        self.statistics = RemoteStatistics()
        self._dataset = dataset
        self._access = access = dataset.origin.access
        self._closing = threading.Event()
        self._transfers = Transfers(access, self.statistics, self._closing)
        self._cache: ShardCache | None = None
        if access.cache_dir is not None:
            self._cache = ShardCache(access, self._transfers, self.statistics, self._closing)
        self._ahead: FetchAhead | None = None

    def read(self, shard: int, offset: int, size: int) -> bytearray:
        """`size` bytes of a remote shard from `offset` on.

        Raises:
            ShardUnavailable: They could not be had within the budget of time.
            RefusedInput: The cache's disk does not take the shard.
        """
        location, entry = self._location(shard), self._dataset.manifest.shards[shard]
        if self._cache is None:
            return self._read_straight(location, entry, offset, size)
        for attempt in range(_TRIES):
            descriptor = self._cache.open(entry)
            if descriptor is not None:
                if attempt == 0:
                    self.statistics.add(hits=1)
                return _read_from(descriptor, offset, size)
            if attempt == 0:
                self.statistics.add(misses=1)
            if not self._wait_for(location, entry):
                break
        # The cache is too small for what is being read; a bound is a bound.
        self.statistics.add(straight_reads=1)
        if location.startswith(COMMAND_PREFIX):
            raise ShardUnavailable(
                f"data.cache_bytes = {self._access.cache_bytes} has no room for the "
                f"{entry.num_bytes} bytes of a shard that a command gives; raise it"
            )
        return self._read_straight(location, entry, offset, size)

    def follow(self, passages_from: Callable[[int], Passages]) -> None:
        """Fetch shards ahead of where reading stands, if there is a cache to keep them in."""
        if self._cache is not None:
            share = self._access.cache_bytes / self._access.local_ranks * _SHARE_FETCHED_AHEAD
            sizes = [entry.num_bytes for entry in self._dataset.manifest.shards]
            self._ahead = FetchAhead(passages_from, self._fetch_ahead, sizes, int(share))

    def move_to(self, place: int) -> None:
        """Say where reading stands."""
        if self._ahead is not None:
            self._ahead.move_to(place)

    def close(self) -> None:
        """End all that is under way; may be called again."""
        self._closing.set()
        if self._ahead is not None:
            self._ahead.close()

    def _location(self, shard: int) -> str:
        location = self._dataset.shard_location(shard)
        assert isinstance(location, str), f"shard {shard} is a local file"
        return location

    def _read_straight(self, location: str, entry: ShardEntry, offset: int, size: int) -> bytearray:
        started = time.perf_counter()
        try:
            return self._transfers.read_range(location, offset, size, entry.num_bytes)
        finally:
            self.statistics.add(wait_seconds=time.perf_counter() - started)

    def _wait_for(self, location: str, entry: ShardEntry) -> bool:
        """Have a shard fetched for an image that is needed now."""
        assert self._cache is not None
        started = time.perf_counter()
        try:
            return self._cache.fetch(location, entry)
        finally:
            self.statistics.add(wait_seconds=time.perf_counter() - started)

    def _fetch_ahead(self, shard: int) -> None:
        location = self._dataset.shard_location(shard)
        entry = self._dataset.manifest.shards[shard]
        assert self._cache is not None
        if isinstance(location, str) and not self._cache.holds(entry):
            self._cache.fetch(location, entry)


def _read_from(descriptor: int, offset: int, size: int) -> bytearray:
    """Bytes of an open, complete shard; closes it."""
    data = bytearray(size)
    view, num_read = memoryview(data), 0
    try:
        while num_read < size:
            got = os.preadv(descriptor, [view[num_read:]], offset + num_read)
            if got == 0:
                raise ShardWrong(
                    f"the index names bytes {offset} to {offset + size}, past the end of the shard"
                )
            num_read += got
    finally:
        os.close(descriptor)
    return data
