"""How well the sample order mixes classes within batches, against a draw from the whole dataset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipeline.order import IntArray, SampleOrder


class Mixed(NamedTuple):
    """Means over some batches.

    Attributes:
        classes: Number of distinct classes in a batch.
        clumping: Squared deviation of the classes' counts from equal ones, as a multiple of what a
            random draw has: 1 is ideal, n means that images come in clumps of about n of a class.
    """

    classes: float
    clumping: float


class Mixing(NamedTuple):
    """Of batches that the order gives, and of ideal ones.

    Attributes:
        shuffled: Images shuffled over the shards, as `data_pipeline.build` does.
        sorted: Images in the shards by class, as with `--no-shuffle`.
        ideal: Batches drawn from the whole dataset.
    """

    shuffled: Mixed
    sorted: Mixed
    ideal: Mixed


def mixing(order: SampleOrder, classes: int, batch_images: int, num_batches: int = 16) -> Mixing:
    """Mixing of batches that are spread evenly over the first epoch; classes are of equal size."""
    generator = np.random.default_rng(order.seed)
    by_class = np.arange(order.num_images) * classes // order.num_images
    by_class = by_class.astype(np.int32)  # half the memory
    shuffled = generator.permutation(by_class)
    starts = np.linspace(0, order.num_images - batch_images, num_batches, dtype=np.int64)
    found = []
    for start in starts.tolist():
        rows = order.rows_at(np.arange(start, start + batch_images))
        drawn = generator.choice(order.num_images, batch_images, replace=False, shuffle=False)
        batches = (shuffled[rows], by_class[rows], by_class[drawn])
        found.append([_mixed(batch, classes, order.num_images) for batch in batches])
    return Mixing(*(Mixed(*of_kind) for of_kind in np.mean(found, axis=0).tolist()))


def _mixed(labels: IntArray, classes: int, num_images: int) -> Mixed:
    counts = np.bincount(labels, minlength=classes)
    batch = len(labels)
    squares = float(np.square(counts - batch / classes).sum())
    # Drawing without replacement: variance of a count, summed over the classes.
    expected = batch * (1 - 1 / classes) * (num_images - batch) / max(1, num_images - 1)
    return Mixed(int((counts > 0).sum()), squares / expected if expected else 1.0)
