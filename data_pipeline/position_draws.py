"""Random numbers of a position: what decides the crop and the flip of one view of an image."""

from __future__ import annotations

import hashlib

_DRAWS_PER_POSITION = 64
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class PositionDraws:
    """Uniform numbers that belong to (seed, position): SplitMix64 begun at a counter.

    Draw k at position p is the SplitMix64 output of state key + (64 p + k + 1) x golden, where key
    is 64 bits of BLAKE2b over "augment:seed". A keyed numpy generator would cost more than
    decoding a small image does.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """

    __slots__ = ("_state",)

    def __init__(self, key: int, position: int) -> None:
        """Stand before the first draw of a position; `key` is `draws_key(seed)`."""
        self._state = (key + position * _DRAWS_PER_POSITION * _GOLDEN) & _MASK

    def uniform(self) -> float:
        """Next number in [0, 1), from 53 bits."""
        self._state = z = (self._state + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Next integer in 0 .. count-1."""
        return int(self.uniform() * count)


def draws_key(seed: int) -> int:
    """The 64 bits that distinguish one seed's draws from another's."""
    return int.from_bytes(hashlib.blake2b(f"augment:{seed}".encode(), digest_size=8).digest())
