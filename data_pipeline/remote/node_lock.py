"""One process of a node does something; the others wait, as long as it gets on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_pipeline.remote.faults import ShardUnavailable

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """How long one waits for another process that makes no progress; `closing` ends every wait."""

    seconds: float
    closing: threading.Event


@contextmanager
def only_process(
    path: Path, patience: Patience, what: str, last_progress: Callable[[], float]
) -> Iterator[None]:
    """Hold a lock of the kernel, which ends with its holder, however that ends.

    Args:
        path: of the lock file, which is there only while somebody holds or wants it.
        patience: with a holder that stands still.
        what: is being done, for messages.
        last_progress: when the holder got on last, in seconds since the epoch.

    Raises:
        ShardUnavailable: The holder stood still for too long.
    """
    lock = FileLock(path)
    started = time.time()
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_LOOK_SECONDS, poll_interval=0.02)
        except Timeout:
            since = time.time() - max(started, last_progress())
            if since > patience.seconds or patience.closing.is_set():
                raise ShardUnavailable(
                    f"{what} is being fetched by another process of this node, without progress "
                    f"for {since:.0f} s; end that process, or give another data.cache_dir"
                ) from None
    try:
        yield
    finally:
        # Those who wait notice that the name is gone, and make the file anew.
        path.unlink(missing_ok=True)
        lock.release()


def last_write(paths: Iterator[Path]) -> float:
    """When any of some files was written last, in seconds since the epoch."""
    times = [0.0]
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            times.append(time.time())  # it just became complete, or was given up
    return max(times)
