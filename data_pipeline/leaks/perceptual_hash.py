"""64-bit perceptual hashes, and the index that finds those that differ in at most 11 bits.

Source: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010, section 3.2.1. Here a bit is the sign of a coefficient, not its side of the
median, so changing the brightness, or the contrast, leaves it as it is; and a test image is hashed
in several views, because a crop of 5 % changes more than 11 bits in two of five small images.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_pipeline.leaks.views import THUMBNAIL_PX, Floats, resampling, view_spans

CODE_BITS = 64
# The index cuts a code into 4 pieces and looks each up with up to 2 bits changed. Two codes that
# differ in 11 bits or fewer differ in 2 or fewer in some piece, so none of them is missed.
MAX_BITS = 11
_PIECES, _PIECE_BITS, _PIECE_FLIPS = 4, 16, 2
_LOW_FREQUENCIES = 8
# At most this many codes are sought at a time: each may be near every entry.
_SEARCHED_AT_ONCE = 64

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
NUM_VIEWS = len(view_spans())

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


def hash_codes(thumbnails: Bytes, num_views: int = NUM_VIEWS) -> Bytes:
    """Codes of the first `num_views` views of each thumbnail.

    Args:
        thumbnails: uint8 (images, 3, 32, 32).
        num_views: 1 hashes the image as it is.

    Returns:
        uint8 (images, num_views, 8): the signs of the 63 lowest frequencies but the mean.
    """
    grey = np.einsum("ncyx,c->nyx", thumbnails.astype(np.float32), LUMA)
    codes = np.empty((len(thumbnails), num_views, CODE_BITS // 8), dtype=np.uint8)
    for view, (vertical, horizontal) in enumerate(_transforms()[:num_views]):
        frequencies = vertical @ grey @ horizontal.T
        signs = frequencies.reshape(len(grey), CODE_BITS) > 0
        signs[:, 0] = False  # the mean, which says nothing and brightness changes
        codes[:, view] = np.packbits(signs, axis=1)
    return codes


@lru_cache(maxsize=1)
def _transforms() -> list[tuple[Floats, Floats]]:
    """For each view, what turns rows and columns of a thumbnail into low frequencies: (8, 32)."""
    place = np.arange(THUMBNAIL_PX) + 0.5
    frequency = np.arange(_LOW_FREQUENCIES)[:, None]
    cosine = np.cos(np.pi * frequency * place / THUMBNAIL_PX).astype(np.float32)
    return [
        (cosine @ resampling(rows), cosine @ resampling(columns)) for rows, columns in view_spans()
    ]


class HashIndex:
    """Codes of test images, searched exactly up to `MAX_BITS` bits; multi-index hashing by faiss.

    A search looks up 4 x 137 places and compares what lies there. Comparing with every entry would
    be faster below some ten thousand entries, and is out of the question for millions.

    Source: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        import faiss

        self._index = faiss.IndexBinaryMultiHash(CODE_BITS, _PIECES, _PIECE_BITS)
        self._index.nflip = _PIECE_FLIPS

    def __len__(self) -> int:
        """Number of entries."""
        return int(self._index.ntotal)

    def add(self, codes: Bytes) -> None:
        """Add entries (n, 8); they are numbered in the order of adding."""
        self._index.add(np.ascontiguousarray(codes))

    def search(self, codes: Bytes) -> tuple[Integers, Integers, Integers]:
        """Entries within `MAX_BITS` of the codes (n, 8): query number, entry, bits that differ."""
        queries, entries, bits = [], [], []
        for start in range(0, len(codes), _SEARCHED_AT_ONCE):
            part = np.ascontiguousarray(codes[start : start + _SEARCHED_AT_ONCE])
            # faiss's radius is one more than the largest distance that it gives.
            limits, distances, found = self._index.range_search(part, MAX_BITS + 1)
            counts = limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)
            queries.append(np.repeat(np.arange(start, start + len(part)), counts))
            entries.append(found.astype(np.int64))
            bits.append(distances.astype(np.int64))
        if not queries:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing, nothing
        return np.concatenate(queries), np.concatenate(entries), np.concatenate(bits)
