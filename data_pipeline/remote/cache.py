"""A folder of fetched shards, of bounded size, shared by the processes of a node.

    CACHE/shards/SHA256.tar          complete shards, named by their content; mtime: last use
    CACHE/incoming/SHA256.*.partial  on its way, of full length from the start: its room is taken
    CACHE/incoming/SHA256.lock       held by the one process that fetches this shard
    CACHE/room.lock                  held while room is made

All locks are the kernel's (flock), so they end with their holder, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from configs.durable_files import flush_to_disk
from configs.errors import RefusedInput
from data_pipeline.location import ShardAccess, shown
from data_pipeline.manifest import ShardEntry
from data_pipeline.remote.node_lock import Patience, last_write, only_process
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import FileSink, Transfers

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOUCH_SECONDS = 1.0
_ROOM_LOCK_SECONDS = 60.0


class ShardCache:
    """Fetched shards on a local disk.

    Raises:
        RefusedInput: The folder cannot be written.
    """

    def __init__(
        self,
        access: ShardAccess,
        transfers: Transfers,
        statistics: RemoteStatistics,
        closing: threading.Event,
    ) -> None:
        """Make the folders, sweep what a crash left, and shrink the cache to its bound."""
        assert access.cache_dir is not None
        self.folder = access.cache_dir
        self.max_bytes = access.cache_bytes
        self._shards = self.folder / "shards"
        self._incoming = self.folder / "incoming"
        self._transfers = transfers
        self._statistics = statistics
        # The holder itself gives up after retry_seconds without progress.
        self._patience = Patience(access.retry_seconds + access.stall_seconds, closing)
        self._touched: dict[str, float] = {}
        self._failures: dict[str, tuple[float, RefusedInput]] = {}
        try:
            self._shards.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
            with self._room_lock():
                self._sweep()
                self._make_room(0)
        except OSError as error:
            raise RefusedInput(
                f"data.cache_dir = {self.folder} cannot be written: {error}; give another folder"
            ) from error

    def open(self, entry: ShardEntry) -> int | None:
        """A descriptor of a shard that is here, or None.

        While it is open the shard is not removed: the descriptor carries a lock.
        """
        path = self._path(entry)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        # Removed between the two calls, or cut short by a power cut.
        if status.st_nlink == 0 or status.st_size != entry.num_bytes:
            os.close(descriptor)
            return None
        self._touch(path, descriptor)
        return descriptor

    def holds(self, entry: ShardEntry) -> bool:
        """Whether a shard is here now."""
        try:
            return self._path(entry).stat().st_size == entry.num_bytes
        except FileNotFoundError:
            return False

    def fetch(self, location: str, entry: ShardEntry) -> bool:
        """Bring a shard here, unless it is or another process brings it; False: there is no room.

        Raises:
            ShardUnavailable: It could not be had.
            RefusedInput: The disk does not take it.
        """
        if entry.num_bytes > self.max_bytes:
            return False
        asked_at = time.monotonic()
        with self._only_fetcher(location, entry):
            if self.holds(entry):
                return True
            failed_at, failure = self._failures.get(entry.sha256, (0.0, None))
            if failure is not None and failed_at > asked_at:
                # It was spending its budget while this thread waited for it: many threads that want
                # a shard must not spend one each, one after the other.
                raise failure
            try:
                return self._fetch(location, entry)
            except RefusedInput as refused:
                self._failures[entry.sha256] = (time.monotonic(), refused)
                raise
            except OSError as error:
                raise RefusedInput(
                    f"data.cache_dir = {self.folder} cannot be written: {error}"
                ) from error

    def _fetch(self, location: str, entry: ShardEntry) -> bool:
        with self._room_lock():
            if not self._make_room(entry.num_bytes):
                return False
            partial, descriptor = self._new_partial(entry)
        try:
            self._transfers.download(
                location, FileSink(descriptor, str(partial)), entry.num_bytes, entry.sha256
            )
            os.fsync(descriptor)
            os.utime(descriptor)
            os.replace(partial, self._path(entry))
            flush_to_disk(self._shards)
            self._statistics.add(shards_fetched=1)
            return True
        finally:
            partial.unlink(missing_ok=True)
            os.close(descriptor)

    def _new_partial(self, entry: ShardEntry) -> tuple[Path, int]:
        """A file of full length, named by host and process; its lock says that they live."""
        writer = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        partial = self._incoming / f"{entry.sha256}.{writer}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # No sweeper sees it unlocked: they too hold the room lock.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, entry.num_bytes)
        except BaseException:
            os.close(descriptor)
            partial.unlink()
            raise
        return partial, descriptor

    def _path(self, entry: ShardEntry) -> Path:
        # The name comes from a manifest that may be anybody's.
        if not _SHA256.fullmatch(entry.sha256):
            raise RefusedInput(
                f"shard {shown(entry.path)}: {entry.sha256!r} in manifest.json is no SHA-256"
            )
        return self._shards / f"{entry.sha256}.tar"

    def _touch(self, path: Path, descriptor: int) -> None:
        now = time.monotonic()
        if now - self._touched.get(path.name, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[path.name] = now
            os.utime(descriptor)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the least recently used shards until `num_bytes` more fit; the room lock is held.

        False if they do not, because the rest is being read or fetched.
        """
        # Incoming ones first: one that becomes complete meanwhile counts twice, not never.
        used = sum(_size(path) for path in self._incoming.glob("*.partial"))
        shards = sorted(
            (entry.stat().st_mtime_ns, entry.stat().st_size, entry.path)
            for entry in os.scandir(self._shards)
        )
        used += sum(size for _, size, _ in shards)
        for _, size, path in shards:
            if used + num_bytes <= self.max_bytes:
                break
            if _unlink_if_idle(path):
                used -= size
        return used + num_bytes <= self.max_bytes

    def _sweep(self) -> None:
        """Remove partial files whose writer is gone; the room lock is held."""
        for partial in self._incoming.glob("*.partial"):
            _unlink_if_idle(str(partial))

    @contextmanager
    def _room_lock(self) -> Iterator[None]:
        lock = FileLock(self.folder / "room.lock", timeout=_ROOM_LOCK_SECONDS)
        try:
            lock.acquire(poll_interval=0.01)
        except Timeout:
            raise RefusedInput(
                f"{lock.lock_file} has been held for {_ROOM_LOCK_SECONDS:.0f} s by another process "
                "that stands still; end it, or give another data.cache_dir"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _only_fetcher(self, location: str, entry: ShardEntry) -> AbstractContextManager[None]:
        """Be the only process and thread that fetches this shard, or wait for the one that does."""
        return only_process(
            self._incoming / f"{self._path(entry).stem}.lock",
            self._patience,
            shown(location),
            lambda: last_write(self._incoming.glob(f"{entry.sha256}.*.partial")),
        )


def _unlink_if_idle(path: str) -> bool:
    """Remove a file unless somebody holds a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
