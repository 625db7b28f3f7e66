"""The sample order: which image stands at a global position. A pure function.

Let N be the number of images, S of canonical streams, p a position counted from the start of
training. Epoch e = p div N shuffles the shards and lays their images end to end; S streams cut that
line into consecutive spans (the first N mod S are one image longer); position q = p mod N reads
stream q mod S at offset q div S; inside a shard the images are permuted anew each epoch. Rank r of
W takes the positions congruent to r mod W, so neither the world size nor the number of threads
enters the order.

    python -m data_pipeline.order DIR --seed 0 --start 0 --count 10

prints the order without training. docs/data_loading.md holds the contract in full.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput

IntArray = NDArray[np.int64]

_MOST = 2**40  # positions made of such numbers fit into int64


class ImagesInShards(Protocol):
    """What an order needs to know of a dataset, whose rows are in the order of its shards."""

    @property
    def images_of_shards(self) -> IntArray:
        """Images of each shard, shape (shards,), also of those that a selection has emptied."""

    @property
    def digest(self) -> str:
        """Identity of the whole data."""

    @property
    def filter_digest(self) -> str:
        """Identity of the selection."""


def random_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Give the random stream that belongs to a purpose and some numbers, on any machine.

    The stream is Philox-4x64 keyed by the first 128 bits of BLAKE2b over "purpose:n1:n2...". numpy
    keeps the raw numbers of a bit generator the same for ever (NEP 19) but not the methods of
    Generator: what must survive an upgrade of numpy uses `.bit_generator.random_raw` only.
    """
    name = ":".join([purpose, *(str(int(number)) for number in numbers)])
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def stable_permutation(count: int, purpose: str, *numbers: int) -> NDArray[np.int64]:
    """Permute 0 .. count-1: the stable ascending argsort of `count` raw numbers of the stream."""
    raw = random_generator(purpose, *numbers).bit_generator.random_raw(count)
    return np.argsort(raw, kind="stable")


class SampleOrder:
    """Maps global positions to rows of a dataset's index.

    Memory is a few numbers a shard plus the permutations of the shards that streams stand in. An
    epoch costs one shuffle of the shards; a shard is permuted when it is first touched.

    Args:
        dataset: the images, possibly filtered; shards may hold differing numbers, also none.
        num_streams: canonical streams S; about S / W shards are being read at a time on each of W
            ranks. Part of the order's identity.
        seed: of the shuffles.

    Raises:
        RefusedInput: no images, or a number of streams that makes no sense.
    """

    def __init__(self, dataset: ImagesInShards, *, num_streams: int, seed: int) -> None:
        """Count the images of each shard."""
        if num_streams < 1:
            raise RefusedInput(f"streams = {num_streams}: the order needs at least one stream")
        if num_streams > _MOST:
            raise RefusedInput(f"streams = {num_streams}: give at most {_MOST}")
        counts = np.asarray(dataset.images_of_shards, dtype=np.int64)
        self.num_images = int(counts.sum())
        if self.num_images == 0:
            raise RefusedInput("the dataset holds no image after filtering: nothing to order")
        self.num_streams = num_streams
        self.seed = seed
        self._digests = (dataset.digest, dataset.filter_digest)
        self._first_row = (np.cumsum(counts) - counts).tolist()
        self._shard_images = counts
        self._lines: OrderedDict[int, tuple[IntArray, IntArray]] = OrderedDict()
        self._permutations: OrderedDict[tuple[int, int], NDArray] = OrderedDict()
        # Each stream stands in one shard; twice that many survive the passage into the next ones.
        self._max_permutations = 2 * min(num_streams, len(counts)) + 8
        self._lock = threading.Lock()

    def row_at(self, position: int) -> int:
        """Row of the index at one global position."""
        return int(self.rows_at(np.array([position]))[0])

    def rows_at(self, positions: IntArray) -> IntArray:
        """Rows of the index, int64, in the shape of `positions`.

        Raises:
            ValueError: a position below zero.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError(f"position {positions.min()} is below zero")
        rows = np.empty(positions.shape, dtype=np.int64)
        epochs = positions // self.num_images
        with self._lock:
            for epoch in sorted(set(epochs.ravel().tolist())):
                chosen = epochs == epoch
                rows[chosen] = self._rows_in_epoch(
                    epoch, positions[chosen] - epoch * self.num_images
                )
        return rows

    def _rows_in_epoch(self, epoch: int, positions: IntArray) -> list[int]:
        stream, offset = positions % self.num_streams, positions // self.num_streams
        length, num_longer = divmod(self.num_images, self.num_streams)
        places = stream * length + np.minimum(stream, num_longer) + offset
        shards, starts = self._line(epoch)
        # "right" steps over the empty shards that start at the same place.
        slots = np.searchsorted(starts, places, side="right") - 1
        return [
            self._first_row[shard] + int(self._permutation(epoch, shard)[image])
            for shard, image in zip(
                shards[slots].tolist(), (places - starts[slots]).tolist(), strict=True
            )
        ]

    def passages(self, epoch: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """When the streams of an epoch that a rank reads pass through which shards.

        Gives int64 (3, passages): first and last position of a stream within a shard, and the
        shard, in the order of the first positions. Where the world size does not divide the streams
        several ranks read a stream, and the positions are those of all of them together.
        """
        length, num_longer = divmod(self.num_images, self.num_streams)
        streams = np.arange(min(self.num_streams, self.num_images), dtype=np.int64)
        shared = math.gcd(self.num_streams, world_size)
        start = epoch * self.num_images
        streams = streams[(start + streams - rank) % shared == 0]
        begin = streams * length + np.minimum(streams, num_longer)
        end = begin + length + (streams < num_longer)
        with self._lock:
            shards, starts = self._line(epoch)
        filled = self._shard_images[shards] > 0
        shards, starts = shards[filled], starts[filled]
        ends = np.append(starts[1:], self.num_images)
        low = np.searchsorted(starts, begin, side="right") - 1
        counts = np.searchsorted(starts, end - 1, side="right") - low
        which = np.repeat(np.arange(len(streams)), counts)
        slots = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + low[which]
        first = np.maximum(starts[slots], begin[which]) - begin[which]
        last = np.minimum(ends[slots], end[which]) - begin[which] - 1
        found = start + np.stack([first, last]) * self.num_streams + streams[which]
        by_first = np.argsort(found[0], kind="stable")
        return np.vstack([found, shards[slots]])[:, by_first]

    def _line(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Shards of an epoch in their shuffled order, and the place where each one starts."""
        if epoch not in self._lines:
            shards = stable_permutation(len(self._shard_images), "shards", self.seed, epoch)
            ends = np.cumsum(self._shard_images[shards])
            self._lines[epoch] = (shards, ends - self._shard_images[shards])
            if len(self._lines) > 2:  # a batch across the boundary needs two
                self._lines.popitem(last=False)
        return self._lines[epoch]

    def _permutation(self, epoch: int, shard: int) -> NDArray:
        key = (epoch, shard)
        found = self._permutations.get(key)
        if found is not None:
            self._permutations.move_to_end(key)
            return found
        count = int(self._shard_images[shard])
        made = stable_permutation(count, "images", self.seed, epoch, shard)
        # Every stream holds one: in two bytes a number, as a rule, not eight.
        made = made.astype(np.min_scalar_type(count))
        self._permutations[key] = made
        if len(self._permutations) > self._max_permutations:
            self._permutations.popitem(last=False)
        return made

    @staticmethod
    def positions_of_rank(start: int, count: int, rank: int, world_size: int) -> IntArray:
        """First `count` positions from `start` on that are congruent to `rank`, int64 (count,)."""
        first = start + (rank - start) % world_size
        return first + world_size * np.arange(count, dtype=np.int64)

    def identity(self) -> dict[str, str | int]:
        """What the order depends on; a checkpoint of another order must not be resumed."""
        digest, filter_digest = self._digests
        return {
            "manifest_digest": digest,
            "filter_digest": filter_digest,
            "num_images": self.num_images,
            "num_streams": self.num_streams,
            "seed": self.seed,
        }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from data_pipeline.subset import add_subset_options

    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.order",
        description="Print the images that training reads, in order, without training: one line "
        "each with position, shard, key and label, separated by blanks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("dir", help="folder or URL of shards (manifest.json, index.parquet)")
    parser.add_argument("--seed", type=int, default=0, help="the run's seed")
    parser.add_argument("--streams", type=int, default=768, help="the run's data.streams")
    parser.add_argument("--world-size", type=int, default=1, help="number of ranks")
    parser.add_argument("--rank", type=int, default=0, help="the rank whose positions are printed")
    parser.add_argument("--start", type=int, default=0, help="first global position")
    parser.add_argument("--count", type=int, default=10, help="number of lines")
    add_subset_options(parser)
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> None:
    if options.world_size < 1:
        raise RefusedInput(f"--world-size {options.world_size}: give at least 1")
    if not 0 <= options.rank < options.world_size:
        raise RefusedInput(
            f"--rank {options.rank}: ranks of --world-size {options.world_size} are "
            f"0 to {options.world_size - 1}"
        )
    for name in ("start", "count", "world_size"):
        if getattr(options, name) > _MOST:
            given = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise RefusedInput(f"{given}: give at most {_MOST}")
    for name in ("start", "count"):
        if getattr(options, name) < 0:
            raise RefusedInput(f"--{name} {getattr(options, name)}: give 0 or more")


def _without_blanks(name: str) -> str:
    """Percent-encode white space, which separates the columns."""
    return re.sub(r"\s", lambda found: quote(found.group()), name)


def main(argv: Sequence[str]) -> int:
    """Print the order; see the module's text."""
    from data_pipeline.index import open_dataset
    from data_pipeline.location import redacted
    from data_pipeline.subset import subset_of

    options = _parse(argv)
    _check(options)
    dataset = subset_of(open_dataset(options.dir), options, options.seed)
    order = SampleOrder(dataset, num_streams=options.streams, seed=options.seed)
    positions = order.positions_of_rank(
        options.start, options.count, options.rank, options.world_size
    )
    for start in range(0, len(positions), 4096):
        part = positions[start : start + 4096]
        for position, row in zip(part.tolist(), order.rows_at(part).tolist(), strict=True):
            shard = dataset.manifest.shards[dataset.shard[row]].path
            names = f"{_without_blanks(redacted(shard))} {_without_blanks(dataset.key(row))}"
            print(f"{position} {names} {dataset.label[row]}")  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
