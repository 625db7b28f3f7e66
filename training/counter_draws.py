"""Uniform random numbers that belong to a counter, for many counters at once."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

DRAWS_PER_COUNTER = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def draws_key(purpose: str, seed: int) -> int:
    """The 64 bits that distinguish the draws of one purpose and seed from all others."""
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def uniform_draws(key: int, counters: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """The first `count` draws of each counter, float64 (counters, count) in [0, 1).

    Draw k of counter p is the SplitMix64 output of state key + (64 p + k + 1) x golden: the numbers
    that decide a position's crop, under another key. It depends on nothing else, so it is the same
    on any rank, in any order, after any resume.

    Args:
        key: of `draws_key`.
        counters: int64 (counters,), such as global positions.
        count: at most `DRAWS_PER_COUNTER`.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    assert count <= DRAWS_PER_COUNTER, "more draws would be the next counter's"
    draw: NDArray[np.uint64] = np.arange(1, count + 1, dtype=np.uint64)
    z: NDArray[np.uint64] = counters.astype(np.uint64)[:, None] * np.uint64(DRAWS_PER_COUNTER)
    z = z + draw
    z = z * _GOLDEN + np.uint64(key)  # arrays wrap modulo 2^64, as they should
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLIERS[0]
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLIERS[1]
    bits = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
    uniform: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return uniform
