"""Width and height of a WebP file, before anything allocates its canvas."""

from __future__ import annotations

Buffer = bytes | bytearray


def is_webp(data: Buffer) -> bool:
    """Whether a file begins as WebP files do."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def webp_size(data: Buffer) -> tuple[int, int]:
    """Width and height from a WebP file's first chunk (lossy, lossless or extended)."""
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        return _uint(data, 24, 3) + 1, _uint(data, 27, 3) + 1
    if kind == b"VP8L":
        bits = _uint(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _uint(data, 26, 2) & 0x3FFF, _uint(data, 28, 2) & 0x3FFF


def _uint(data: Buffer, place: int, num_bytes: int) -> int:
    return int.from_bytes(data[place : place + num_bytes], "little")
