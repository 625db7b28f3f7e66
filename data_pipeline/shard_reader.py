"""Reads image files out of shards by (offset, size), in any order, from many threads."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from configs.errors import RefusedInput
from data_pipeline.index import ShardedDataset


@dataclass(eq=False)
class _OpenShard:
    descriptor: int
    num_readers: int = 1


class ShardReader:
    """Keeps the shards that are being read open, least recently used ones closed beyond a bound.

    Args:
        dataset: the images; their shards are local files.
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

    def read(self, row: int) -> bytearray:
        """Bytes of the image file of a row.

        Raises:
            RefusedInput: the shard is missing, or ends before the image does.
        """
        dataset = self._dataset
        shard, offset, size = int(dataset.shard[row]), int(dataset.offset[row]), dataset.size[row]
        data = bytearray(size)
        view, num_read = memoryview(data), 0
        with self._shard(shard) as descriptor:
            while num_read < size:
                got = os.preadv(descriptor, [view[num_read:]], offset + num_read)
                if got == 0:
                    raise RefusedInput(
                        f"{dataset.shard_path(shard)} ends at byte {offset + num_read}, within the "
                        f"image {dataset.key(row)}; copy the shard again or build the dataset anew "
                        f"(`python -m data_pipeline.verify {dataset.folder}` lists what is wrong)"
                    )
                num_read += got
        return data

    def close(self) -> None:
        """Close every shard; one that a thread is still reading closes when it is done."""
        with self._lock:
            self.max_open = 0
            self._close_oldest()

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
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise RefusedInput(
                f"{path} is missing, though the manifest of {self._dataset.folder} lists it; put "
                "the shard back or build the dataset anew"
            ) from error
        except OSError as error:
            raise RefusedInput(f"{path} cannot be opened: {error.strerror}") from error

    def _close_oldest(self) -> None:
        """Drop idle shards beyond the bound; one that is being read must keep its descriptor."""
        excess = len(self._open) - self.max_open
        if excess > 0:
            idle = [shard for shard, handle in self._open.items() if handle.num_readers == 0]
            for shard in idle[:excess]:
                os.close(self._open.pop(shard).descriptor)
