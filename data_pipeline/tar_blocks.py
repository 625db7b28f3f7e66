"""The bytes of a tar, member by member, for shards that grow in turns.

The same bytes as `webdataset.TarWriter` writes with no owner and time 0; that one keeps a file open
and every header in memory, for each of what may be 13,000 shards at once.
"""

from __future__ import annotations

import tarfile

BLOCK_BYTES = tarfile.BLOCKSIZE


def member_blocks(name: str, data: bytes) -> bytes:
    """Header, content and padding of a regular file without owner and with time 0."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o444
    header = member.tobuf(tarfile.USTAR_FORMAT)
    return b"".join((header, data, bytes(-len(data) % BLOCK_BYTES)))


def end_blocks(num_bytes: int) -> bytes:
    """What ends an archive of `num_bytes` so far: two empty blocks, then padding to a record."""
    end = 2 * BLOCK_BYTES
    return bytes(end + -(num_bytes + end) % tarfile.RECORDSIZE)
