"""What reading from elsewhere cost since it was last asked."""

from __future__ import annotations

import threading


class RemoteStatistics:
    """Counters that many threads add to.

    Names: `bytes_fetched`, `shards_fetched`, `retries`, `hits` and `misses` (images whose shard was
    or was not in the cache), `straight_reads` (images read past a cache), `wait_seconds` (decoding
    threads standing still for bytes, added up over the threads).
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._counts: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] = self._counts.get(name, 0) + amount

    def read(self) -> dict[str, float]:
        """The counters that are not zero."""
        with self._lock:
            return dict(self._counts)

    def read_and_reset(self) -> dict[str, float]:
        """The counters that are not zero, after which all are."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts
