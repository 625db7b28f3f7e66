"""A simulated run's numbers as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.class_mixing import Mixing
from data_pipeline.simulated_reading import Change, Reading, Spread
from data_pipeline.simulation import Fleet


def describe(fleet: Fleet, reading: Reading, mixed: Mixing) -> Iterator[str]:
    """The numbers, a line each."""
    yield (
        f"{fleet.images:,} images of {size_told(fleet.image_bytes)} in {fleet.shards:,} shards of "
        f"{fleet.images / fleet.shards:,.0f} images, {size_told(fleet.shard_bytes)}; "
        f"{size_told(fleet.images * fleet.image_bytes)} in all"
    )
    yield (
        f"{fleet.world_size:,} ranks on {fleet.num_nodes:,} nodes, {fleet.streams:,} streams, "
        f"{fleet.images_per_second:,.0f} images/s a rank: an epoch takes "
        f"{_time_told(fleet.epoch_hours)}"
    )
    if not reading.exact:
        yield "ranks and nodes below: some that are evenly spread, worked out exactly"
    downloads, per_hour = (
        reading.downloads_of_node_and_epoch,
        reading.fetched_bytes_of_node_and_hour,
    )
    yield _row("", "mean", "most")
    yield _row("shards open, each rank", *_counts(reading.open_shards_of_rank))
    yield _row("shards open, each node", *_counts(reading.open_shards_of_node))
    yield _row("files opened, a node and hour", f"{reading.opened_by_node_and_hour:,.0f}")
    yield _row("read straight, a node and hour", size_told(reading.straight_bytes_of_node_and_hour))
    yield "with a cache on each node:"
    yield _row("downloads, a node and epoch", f"{downloads.mean:,.1f}", f"{downloads.most:,.1f}")
    yield _row("downloads of a shard, an epoch", f"{reading.downloads_of_a_shard:.2f}")
    yield _row("fetched, a node and hour", size_told(per_hour.mean), size_told(per_hour.most))
    yield _row("shards in the cache", *_counts(reading.cached_shards_of_node))
    yield _row("cache needed", "", size_told(reading.cache_bytes_of_node))
    yield (
        f"balance: {reading.images_of_rank.fewest:,} to {reading.images_of_rank.most:,} images a "
        f"rank, {downloads.fewest:,.1f} to {downloads.most:,.1f} downloads a node, in an epoch"
    )
    yield from _describe_mixing(fleet, mixed)


def _describe_mixing(fleet: Fleet, mixed: Mixing) -> Iterator[str]:
    yield f"mixing of {fleet.classes:,} classes in batches of {fleet.batch_images:,}:"
    yield _row("", "classes", "clumps of")
    kinds = (
        ("images shuffled over shards", mixed.shuffled),
        ("shards sorted by class", mixed.sorted),
        ("ideal", mixed.ideal),
    )
    for name, kind in kinds:
        yield _row(name, f"{kind.classes:,.0f}", f"{kind.clumping:,.2f}")


def describe_change(old: Fleet, change: Change) -> Iterator[str]:
    """What going on with another number of ranks costs."""
    reading = change.reading
    yield f"going on with {change.world_size:,} ranks instead of {old.world_size:,}:"
    yield "  images, their order and their views stay the same; nothing is read twice or left out"
    yield _row("", "mean", "most")
    yield _row("shards open, each rank", *_counts(reading.open_shards_of_rank))
    yield _row("downloads of a shard, an epoch", f"{reading.downloads_of_a_shard:.2f}")
    yield _row("cache needed", "", size_told(reading.cache_bytes_of_node))
    yield (
        f"  before its first batch a node needs {change.shards_needed_at_once:,.1f} shards; "
        f"{change.shards_not_in_cache:,.1f} ({size_told(change.bytes_not_in_cache)}) are not in "
        "its cache"
    )


def size_told(num_bytes: float) -> str:
    """A size in the unit that suits it, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:,.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} TB"


def _time_told(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"


def _counts(spread: Spread) -> tuple[str, str]:
    return f"{spread.mean:,.1f}", f"{spread.most:,}"


def _row(name: str, first: str, second: str = "") -> str:
    return f"  {name:<32} {first:>12} {second:>12}".rstrip()
