"""When shards are read: known in advance, in training from the order and in evaluation anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import SampleOrder


@dataclass(frozen=True)
class Passages:
    """Which shards are read between places `begin` and `end`, and some of those that come later.

    A place is a position of an order, or a row in an evaluation. int64 arrays (passages,) in the
    order of `first`: the shard of number `shard` is read from place `first` to place `last`.
    """

    begin: int
    end: int
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    shard: NDArray[np.int64]


def passages_of_order(order: SampleOrder, rank: int, world_size: int) -> Callable[[int], Passages]:
    """What one rank of a training reads: gives the passages of a position's epoch and the next."""

    def passages_at(position: int) -> Passages:
        epoch = position // order.num_images
        found = [order.passages(number, rank, world_size) for number in (epoch, epoch + 1)]
        first, last, shard = np.concatenate(found, axis=1)
        begin = epoch * order.num_images
        return Passages(begin, begin + order.num_images, first, last, shard)

    return passages_at


def passages_of_rows(shard: NDArray[np.int32], begin: int, end: int) -> Passages:
    """What an evaluation of rows `begin` to `end` reads, given the shard of every row."""
    shards, first = np.unique(shard[begin:end], return_index=True)
    first = first.astype(np.int64) + begin
    last = np.append(first[1:], max(begin, end)) - 1
    return Passages(begin, max(begin, end), first, last[: len(first)], shards.astype(np.int64))
