"""What is poor about the settings of a simulated run, and what would be better."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.class_mixing import Mixing
from data_pipeline.simulated_reading import Reading
from data_pipeline.simulation import Fleet
from data_pipeline.simulation_report import size_told

# Where advice begins; docs/data.md says why.
_MANY_OPEN_SHARDS = 64
_EXTRA_DOWNLOADS = 1.1
_SHARDS_A_STREAM = 10
_POOR_MIXING = 0.9
_POOR_CLUMPING = 2.0
_SMALL_SHARD_BYTES, _LARGE_SHARD_BYTES = 16e6, 2e9


def advise(fleet: Fleet, reading: Reading, mixed: Mixing) -> Iterator[str]:
    """Give a sentence for every setting that is poor."""
    yield from advise_on_ranks(fleet, reading)
    if fleet.cache_bytes is not None and fleet.cache_bytes < reading.cache_bytes_of_node:
        yield (
            f"a cache of {size_told(fleet.cache_bytes)} is too small: shards would be downloaded "
            f"again while they are read; give {size_told(reading.cache_bytes_of_node)}, or make "
            "shards smaller"
        )
    if fleet.sorted and (
        mixed.sorted.classes < _POOR_MIXING * mixed.ideal.classes
        or mixed.sorted.clumping > _POOR_CLUMPING
    ):
        yield (
            f"sorted shards mix badly, {mixed.sorted.classes:,.0f} classes in a batch instead of "
            f"{mixed.ideal.classes:,.0f}, in clumps of {mixed.sorted.clumping:,.1f}: let "
            "`data_pipeline.build` shuffle (its default)"
        )
    if fleet.shard_bytes < _SMALL_SHARD_BYTES:
        yield (
            f"shards of {size_told(fleet.shard_bytes)} are small: opening them costs a parallel "
            "file system or an object store more than reading them; make fewer"
        )
    if fleet.shard_bytes > _LARGE_SHARD_BYTES:
        yield (
            f"shards of {size_told(fleet.shard_bytes)} are large: with a cache the first batch "
            "waits for whole shards; make more of them"
        )


def advise_on_ranks(fleet: Fleet, reading: Reading) -> Iterator[str]:
    """What depends on the number of ranks."""
    if fleet.batch_images % fleet.world_size:
        yield (
            f"a batch of {fleet.batch_images:,} does not divide by {fleet.world_size:,} ranks: "
            f"such a run is refused; take {_multiple(fleet.batch_images, fleet.world_size):,}"
        )
    per_shard = reading.downloads_of_a_shard
    if fleet.streams % fleet.world_size:
        fitting = max(w for w in range(1, fleet.world_size + 1) if fleet.streams % w == 0)
        yield (
            f"{fleet.world_size:,} ranks do not divide {fleet.streams:,} streams: every stream "
            f"goes round several ranks, and with caches each shard is downloaded {per_shard:.2f} "
            f"times an epoch; for a new run take {_multiple(fleet.streams, fleet.world_size):,} "
            f"streams, for one under way {fitting:,} ranks"
        )
        return  # the number of open shards follows from that
    if per_shard > _EXTRA_DOWNLOADS and fleet.shards < _SHARDS_A_STREAM * fleet.streams:
        yield (
            f"too few shards for the streams: many are cut by a stream's end, and with caches each "
            f"is downloaded {per_shard:.2f} times an epoch; make at least "
            f"{_SHARDS_A_STREAM * fleet.streams:,} shards, or take fewer streams (multiples of "
            f"{fleet.world_size:,})"
        )
    if reading.open_shards_of_rank.most > _MANY_OPEN_SHARDS:
        yield (
            f"a rank reads from {reading.open_shards_of_rank.most:,.0f} shards at a time: take "
            f"fewer streams, at best {fleet.world_size:,} or a small multiple"
        )


def _multiple(number: int, of: int) -> int:
    """The multiple nearest to a number, at least one times."""
    return max(1, round(number / of)) * of
