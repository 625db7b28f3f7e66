"""Reads image files out of shards by (offset, size), in any order, from many threads."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.broken import BrokenImage, BrokenShard
from data_pipeline.index import ShardedDataset
from data_pipeline.location import ShardLocation, is_url

if TYPE_CHECKING:
    from data_pipeline.remote.shards import RemoteShards

# Before each further attempt where the storage reports an error: a server that restarts, a handle
# that went stale.
_RETRY_PAUSES_SECONDS = (0.1, 1.0)
# This process or machine is out of something; the data are not to blame.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(eq=False)
class _OpenShard:
    descriptor: int
    num_readers: int = 1


class ShardReader:
    """Keeps the shards that are being read open, least recently used ones closed beyond a bound.

    Remote shards are read through `data_pipeline.remote`, as the dataset's `access` says.

    Args:
        dataset: the images.
        max_open: shards kept open; None means half of what the system lets a process open.
    """

    def __init__(self, dataset: ShardedDataset, max_open: int | None = None) -> None:
        """Open nothing yet."""
        self._dataset = dataset
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = 4096 if soft_limit == resource.RLIM_INFINITY else soft_limit // 2
        self.max_open = max_open or min(limit, 4096)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._locations: dict[int, ShardLocation] = {}
        self._remote: RemoteShards | None = None
        # Whether any shard lies elsewhere.
        self.has_remote_shards = dataset.origin.url is not None or any(
            is_url(entry.path) for entry in dataset.manifest.shards
        )

    @property
    def remote(self) -> RemoteShards:
        """What reads the remote shards of the dataset."""
        with self._lock:
            if self._remote is None:
                from data_pipeline.remote.shards import RemoteShards  # imports requests and fsspec

                self._remote = RemoteShards(self._dataset)
            return self._remote

    def read(self, row: int) -> bytearray:
        """Bytes of the image file of a row.

        Raises:
            BrokenShard: the shard is missing, cannot be opened, is not of its size or, where it
                came from elsewhere into the cache, not of its digest.
            ShardUnavailable: a remote shard could not be had within its budget of time.
            BrokenImage: the storage fails at these bytes, again and again.
            OSError: no more files can be opened.
        """
        dataset = self._dataset
        shard, offset = int(dataset.shard[row]), int(dataset.offset[row])
        if isinstance(self._location(shard), str):
            return self._read_remote(shard, offset, int(dataset.size[row]))
        data = bytearray(dataset.size[row])
        with self._shard(shard) as descriptor:
            try:
                num_read = _read_into(data, descriptor, offset)
            except OSError as error:
                num_read = _read_anew(data, dataset.shard_path(shard), offset, error)
        if num_read < len(data):
            raise BrokenShard(f"it was cut to {offset + num_read} bytes while it was in use")
        return data

    def close(self) -> None:
        """Close every shard; one that a thread is still reading closes when it is done."""
        with self._lock:
            self.max_open = 0
            self._close_oldest()
        if self._remote is not None:
            self._remote.close()

    def _read_remote(self, shard: int, offset: int, size: int) -> bytearray:
        from data_pipeline.remote.faults import ShardWrong

        try:
            return self.remote.read(shard, offset, size)
        except ShardWrong as wrong:
            # Whoever asks finds it so. An outage is not: it ends the run, which then goes on from
            # its checkpoint with the same images.
            raise BrokenShard(str(wrong)) from wrong

    def _location(self, shard: int) -> ShardLocation:
        # Asked for every image; what a name in the manifest means is worked out once.
        found = self._locations.get(shard)
        if found is None:
            found = self._locations[shard] = self._dataset.shard_location(shard)
        return found

    @contextmanager
    def _shard(self, shard: int) -> Iterator[int]:
        handle = self._acquire(shard)
        try:
            yield handle.descriptor
        finally:
            with self._lock:
                handle.num_readers -= 1
                self._close_oldest()

    def _acquire(self, shard: int) -> _OpenShard:
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                found = self._open[shard] = _OpenShard(self._open_file(shard), num_readers=0)
            self._open.move_to_end(shard)
            found.num_readers += 1
            return found

    def _open_file(self, shard: int) -> int:
        path = self._dataset.shard_path(shard)
        descriptor = _open_patiently(path)
        expected, found = self._dataset.manifest.shards[shard].num_bytes, os.fstat(descriptor)
        if found.st_size != expected:
            os.close(descriptor)
            raise BrokenShard(f"it has {found.st_size} bytes, the manifest says {expected}")
        return descriptor

    def _close_oldest(self) -> None:
        """Drop idle shards beyond the bound; one that is being read must keep its descriptor."""
        excess = len(self._open) - self.max_open
        if excess > 0:
            idle = [shard for shard, handle in self._open.items() if handle.num_readers == 0]
            for shard in idle[:excess]:
                os.close(self._open.pop(shard).descriptor)


def _open_patiently(path: Path) -> int:
    for pause in (*_RETRY_PAUSES_SECONDS, None):
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BrokenShard("the file is missing") from error
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                raise
            if pause is None:
                raise BrokenShard(f"it cannot be opened: {error.strerror}") from error
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _read_into(data: bytearray, descriptor: int, offset: int) -> int:
    """Fill `data` from a file; gives the number of bytes read, fewer only at the file's end."""
    view, num_read = memoryview(data), 0
    while num_read < len(data):
        got = os.preadv(descriptor, [view[num_read:]], offset + num_read)
        if got == 0:
            break
        num_read += got
    return num_read


def _read_anew(data: bytearray, path: Path, offset: int, error: OSError) -> int:
    """Read through a handle of its own, since the open one may have gone stale.

    Raises:
        BrokenImage: every attempt fails; `error` was the first.
    """
    for pause in _RETRY_PAUSES_SECONDS:
        time.sleep(pause)
        try:
            with open(path, "rb", buffering=0) as file:
                return _read_into(data, file.fileno(), offset)
        except OSError as again:
            error = again
    raise BrokenImage(f"reading it fails: {error.strerror}") from error
