"""Fetches the next shards before they are read: their order is known."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from configs.errors import RefusedInput
from data_pipeline.passages import Passages

logger = logging.getLogger(__name__)

_THREADS = 4
_CLOSE_TIMEOUT_SECONDS = 5.0


class FetchAhead:
    """Threads that keep the shards of the next places in the cache.

    Args:
        passages_from: the passages that begin or go on at a place, and later ones.
        fetch: brings a shard, by number, into the cache.
        shard_bytes: size of each shard.
        max_bytes: shards read now and next are fetched as long as they fit into this together.
    """

    def __init__(
        self,
        passages_from: Callable[[int], Passages],
        fetch: Callable[[int], None],
        shard_bytes: Sequence[int],
        max_bytes: int,
    ) -> None:
        """Start the threads; they wait for `move_to`."""
        self._passages_from = passages_from
        self._fetch = fetch
        self._shard_bytes = shard_bytes
        self._max_bytes = max_bytes
        self._passages: Passages | None = None
        self._window_from = self._next_change = -1
        self._wanted: list[int] = []
        self._done: set[int] = set()
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"vitrain-fetch-{number}", daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def move_to(self, place: int) -> None:
        """Say where reading stands; what is read there or soon after is fetched."""
        known = self._passages
        if known is None or not known.begin <= place < known.end:
            self._passages = self._passages_from(place)
        elif self._window_from <= place < self._next_change:
            return
        self._window_from = place
        window = self._window(place)
        with self._changed:
            self._done &= set(window)
            self._wanted = [shard for shard in window if shard not in self._done]
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads; a transfer that does not end in time ends with the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_TIMEOUT_SECONDS)

    def _window(self, place: int) -> list[int]:
        """Shards read at `place` and next, each once, as many as fit; sets when this changes."""
        assert self._passages is not None
        passages, used = self._passages, 0
        open_ones = np.flatnonzero(passages.last >= place)
        window: dict[int, None] = {}
        self._next_change = passages.end
        for number in open_ones.tolist():
            shard = int(passages.shard[number])
            if shard not in window:
                used += self._shard_bytes[shard]
                if used > self._max_bytes:
                    break
                window[shard] = None
            self._next_change = min(self._next_change, int(passages.last[number]) + 1)
        return list(window)

    def _work(self) -> None:
        while (shard := self._take()) is not None:
            try:
                self._fetch(shard)
            except RefusedInput as refused:
                # Whoever needs the shard meets the same, and knows what it means for the run.
                logger.warning("fetching ahead: %s", refused)

    def _take(self) -> int | None:
        with self._changed:
            while not self._wanted and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            shard = self._wanted.pop(0)
            self._done.add(shard)
            return shard
