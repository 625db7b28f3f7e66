"""scikit-learn's embedded handwritten digits: 1,797 grey images of 8 x 8 px, no download.

The set has no official split. Ours is fixed: in every class the images are ranked by the SHA-256 of
their number, and the 1,000 with the lowest relative rank train, the other 797 test.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sources.source import ArraySource

NUM_TRAIN = 1000
_LARGEST_VALUE = 16


def read_digits(split: str) -> ArraySource:
    """Read `train` (1,000) or `test` (797), in scikit-learn's order.

    The values 0..16 are spread over 0..255; images keep their 8 x 8 px.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    labels = loaded.target.astype(np.int64)
    is_train = _train_mask(labels)
    chosen = is_train if split == "train" else ~is_train
    pixels = np.rint(loaded.images * (255 / _LARGEST_VALUE)).astype(np.uint8)
    return ArraySource(
        name="digits",
        split=split,
        classes=tuple(str(digit) for digit in range(10)),
        labels=labels[chosen],
        pixels=pixels[chosen],
    )


def _train_mask(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True for the training images, shape (N,): nearly the same share of every class."""
    names = [f"digit {number}".encode() for number in range(len(labels))]
    digests = [hashlib.sha256(name).digest()[:8] for name in names]
    hashes = np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)
    relative_rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks = np.argsort(np.argsort(hashes[members]))
        relative_rank[members] = (ranks + 0.5) / len(members)
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.argsort(relative_rank, kind="stable")[:NUM_TRAIN]] = True
    return mask
