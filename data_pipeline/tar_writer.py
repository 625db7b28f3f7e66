"""Writes the tar of a shard: `KEY.cls`, then `KEY.jpg` (or another image), sample after sample.

webdataset's TarWriter with a whole-second mtime writes the same bytes (a test compares them), but
tarfile spends more time on a small image's two headers than everything else here together.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import Protocol

TAR_BLOCK_BYTES = tarfile.BLOCKSIZE
# A label's member and the image's header: what a tar holds beside the image itself.
OVERHEAD_BYTES = 3 * TAR_BLOCK_BYTES
# An archive ends with two empty blocks and is padded to a multiple of this.
_RECORD_BYTES = tarfile.RECORDSIZE
END_OF_TAR_BYTES = 2 * TAR_BLOCK_BYTES + _RECORD_BYTES - 1
_MODE = 0o444
BUFFER_BYTES = 1 << 20
_ZEROS = bytes(TAR_BLOCK_BYTES)
# Fields of a ustar header: name 0-99, size 124-134, checksum 148-153; the others never change.
_NAME_END, _SIZE_START, _SIZE_END, _SUM_START, _SUM_END = 100, 124, 135, 148, 154
LARGEST_MEMBER_BYTES = 0o77777777777


def _blank_header() -> bytes:
    """A header with mode 0444, time 0 and no owner, so that bytes depend on the images alone."""
    member = tarfile.TarInfo()
    member.mode = _MODE
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[_SIZE_START:_SIZE_END] = bytes(_SIZE_END - _SIZE_START)
    return bytes(header)


_BLANK = _blank_header()
_BEFORE_SIZE = _BLANK[_NAME_END:_SIZE_START]
_BEFORE_SUM = _BLANK[_SIZE_END:_SUM_START]
_AFTER_SUM = _BLANK[_SUM_END:]
# The checksum counts its own field (six digits, zero, space) as eight spaces.
_BLANK_SUM = sum(_BEFORE_SIZE) + sum(_BEFORE_SUM) + sum(_BLANK[_SUM_END + 2 :]) + 8 * ord(" ")


def member_header(name: bytes, size: int) -> bytes:
    """The 512-byte header of a regular file, as tarfile writes it; `name` has up to 99 bytes."""
    assert size <= LARGEST_MEMBER_BYTES and len(name) < _NAME_END, "no ustar header can say this"
    digits = b"%011o" % size
    checksum = b"%06o" % (_BLANK_SUM + sum(name) + sum(digits))
    padding = _ZEROS[len(name) : _NAME_END]
    return b"".join(
        (name, padding, _BEFORE_SIZE, digits, _BEFORE_SUM, checksum, _AFTER_SUM),
    )


class Sink(Protocol):
    """What a tar is written to: an open file, or anything else that takes bytes in turn."""

    def write(self, data: bytes, /) -> int:
        """Take all of `data`; raises OSError."""


class ShardTar:
    """A tar that is being written to an open file; counts and digests what it writes.

    `num_bytes` and `sha256()` are those of the whole file once `close` was called, which leaves the
    file itself open; `num_buffered` bytes wait in memory to be written.
    """

    def __init__(self, file: Sink, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Start at the beginning of an empty file; `buffer_bytes` are written at a time."""
        self._file = file
        self._buffer_bytes = buffer_bytes
        self._digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self.num_buffered = 0
        self.num_bytes = 0

    def go_on(self, num_bytes: int, digest: hashlib._Hash) -> None:
        """Take it that `num_bytes` with this digest lie in the file already."""
        self.num_bytes = num_bytes
        self._digest = digest.copy()

    def add(self, key: str, *members: tuple[str, bytes]) -> int:
        """Append a sample, its members as (extension, content); gives the offset of the last one.

        The order of extensions is webdataset's own, the label ("cls") before the image ("jpg").

        Raises:
            OSError: The file cannot be written.
        """
        offset = end = self.num_bytes
        for extension, data in members:
            size = len(data)
            offset = end + TAR_BLOCK_BYTES
            padding = -size % TAR_BLOCK_BYTES
            header = member_header(f"{key}.{extension}".encode(), size)
            self._parts += (header, data, _ZEROS[:padding])
            end = offset + size + padding
        self.num_buffered += end - self.num_bytes
        self.num_bytes = end
        if self.num_buffered >= self._buffer_bytes:
            self.flush()
        return offset

    def close(self) -> None:
        """Write the end of the archive.

        Raises:
            OSError: The file cannot be written.
        """
        end = 2 * TAR_BLOCK_BYTES
        end += -(self.num_bytes + end) % _RECORD_BYTES
        self._parts.append(bytes(end))
        self.num_bytes += end
        self.flush()

    def sha256(self) -> str:
        """Digest (hex) of what was written."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Write what waits, `num_buffered` bytes.

        Raises:
            OSError: The file cannot be written.
        """
        block = b"".join(self._parts)
        self._parts.clear()
        self.num_buffered = 0
        self._digest.update(block)
        self._file.write(block)
