"""A file at a URL as a binary file that can be read and sought, through every fault of the way."""

from __future__ import annotations

import io
from typing import IO, Any

from data_pipeline.remote.faults import ShardUnavailable
from data_pipeline.sources.remote_files import SourceUnavailable, source_transfers

# A request to an object store takes tens of milliseconds, whatever its size.
_BUFFER_BYTES = 8 << 20


def open_remote(url: str, num_bytes: int) -> IO[bytes]:
    """The file at its beginning, read 8 MiB at a time; `num_bytes` is its size.

    Reading raises SourceUnavailable once repeating has not helped.
    """
    return io.BufferedReader(_RemoteFile(url, num_bytes), _BUFFER_BYTES)


class _RemoteFile(io.RawIOBase):
    """A file at a URL; reads are repeated as those of remote shards are."""

    def __init__(self, url: str, num_bytes: int) -> None:
        self._url = url
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The next byte's number."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another byte; nothing is asked for yet."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as the file reaches."""
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self._num_bytes - self._position))
        try:
            data = source_transfers().read_range(self._url, self._position, size, self._num_bytes)
        except ShardUnavailable as error:
            what = str(error).partition("; set data.")[0]  # that is advice to training
            raise SourceUnavailable(
                f"{what}; what is written stays, and the same command goes on behind it"
            ) from error
        view[:size] = data
        self._position += size
        return size
