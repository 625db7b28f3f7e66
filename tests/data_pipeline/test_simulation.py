"""The simulation against stepping through every position of the sample order and the loader."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data_groups import AugmentConfig
from data_pipeline.augment import TrainTransform
from data_pipeline.loader import TrainLoader
from data_pipeline.order import SampleOrder
from data_pipeline.simulated_reading import Simulation
from data_pipeline.simulation import (
    NUM_EPOCHS,
    Timetable,
    held_at,
    make_order,
    spread_readers,
    usage,
)
from tests.data_pipeline.sample_fleets import fleet_of
from tests.data_pipeline.sample_shards import plain_dataset


def stepped(fleet, order, ranks_per_reader, *, is_fetched_ahead=False):
    """Which shards each reader holds at each position: bool (readers, shards, positions)."""
    total, streams = fleet.images, fleet.streams
    rows = order.rows_at(np.arange(NUM_EPOCHS * total))
    first_of_shard = np.cumsum([0, *_shard_sizes(fleet)])
    stretches = []  # [stream, shard, positions]
    for stream in range(streams):
        for epoch in range(NUM_EPOCHS):
            last = None
            for q in range(stream, total, streams):
                position = epoch * total + q
                shard = int(np.searchsorted(first_of_shard, rows[position], "right")) - 1
                if shard != last:
                    stretches.append((stream, shard, []))
                    last = shard
                stretches[-1][2].append(position)
    num_readers = -(-fleet.world_size // ranks_per_reader)
    held = np.zeros((num_readers, fleet.shards, NUM_EPOCHS * total), dtype=bool)
    for number, (stream, shard, positions) in enumerate(stretches):
        begin = positions[0]
        if is_fetched_ahead and number and stretches[number - 1][0] == stream:
            begin = stretches[number - 1][2][0]
        for position in positions:
            reader = position % fleet.world_size // ranks_per_reader
            held[reader, shard, begin : positions[-1] + 1] = True
    return held


def _shard_sizes(fleet):
    small, num_larger = divmod(fleet.images, fleet.shards)
    return [small + (number < num_larger) for number in range(fleet.shards)]


fleets = st.builds(
    fleet_of,
    images=st.integers(12, 80),
    shards=st.integers(1, 12),
    world_size=st.integers(1, 9),
    streams=st.integers(1, 14),
    seed=st.integers(0, 1000),
)


@settings(max_examples=60, deadline=None)
@given(fleets, st.integers(1, 4), st.booleans())
def test_holdings_equal_stepping_through_every_position(fleet, ranks_per_reader, ahead):
    order = make_order(fleet)
    expected = stepped(fleet, order, ranks_per_reader, is_fetched_ahead=ahead)
    timetable = Timetable(order, is_fetched_ahead=ahead)
    readers = spread_readers(timetable, fleet, ranks_per_reader)
    assert [rank for ranks in readers for rank in ranks] == list(range(fleet.world_size))
    got = np.zeros_like(expected)
    for reader, ranks in enumerate(readers):
        for shard, begin, end in zip(*timetable.holdings(ranks, fleet.world_size), strict=True):
            assert not got[reader, shard, begin:end].any()
            got[reader, shard, begin:end] = True
    assert (got == expected).all()
    used = usage(timetable, fleet, readers)
    begun = np.diff(expected.astype(np.int8), axis=2, prepend=0) == 1
    assert used.downloads.tolist() == (begun.sum(axis=(1, 2)) / NUM_EPOCHS).tolist()
    assert used.most_held.tolist() == expected.sum(axis=1).max(axis=1).tolist()
    assert used.mean_held == pytest.approx(expected.sum(axis=1).mean(axis=1))
    half = fleet.images // 2
    for reader, ranks in enumerate(readers):
        held = held_at(timetable, fleet.world_size, ranks, half)
        assert held == set(np.flatnonzero(expected[reader, :, half]))


@settings(max_examples=20, deadline=None)
@given(fleets)
def test_a_reading_sums_up_every_position(fleet):
    order = make_order(fleet)
    reading = Simulation(fleet, order).reading
    images = np.bincount(np.arange(fleet.images) % fleet.world_size, minlength=fleet.world_size)
    assert reading.images_of_rank.fewest == images.min()
    assert reading.images_of_rank.most == images.max()
    held = {each: stepped(fleet, order, each) for each in (1, fleet.ranks_per_node)}
    downloads = (np.diff(held[2].astype(np.int8), axis=2, prepend=0) == 1).sum() / NUM_EPOCHS
    assert reading.downloads_of_a_shard == pytest.approx(downloads / fleet.shards)
    assert reading.open_shards_of_rank.most == held[1].sum(axis=1).max()
    opened = (np.diff(held[1].astype(np.int8), axis=2, prepend=0) == 1).sum() / NUM_EPOCHS
    of_node = opened / fleet.world_size * min(2, fleet.world_size)
    assert reading.opened_by_node_and_hour == pytest.approx(of_node / fleet.epoch_hours)
    assert reading.open_shards_of_node.mean == pytest.approx(held[2].sum(axis=1).mean())
    ahead = stepped(fleet, order, 2, is_fetched_ahead=True).sum(axis=1).max()
    assert reading.cache_bytes_of_node == pytest.approx(1.25 * ahead * fleet.shard_bytes)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_loader_reads_the_shards_that_the_simulation_tells(tmp_path, world_size):
    fleet = fleet_of(
        images=60, shards=6, world_size=world_size, ranks_per_node=1, streams=4, batch_images=6
    )
    dataset = plain_dataset(tmp_path, [10] * 6)
    loaded = SampleOrder(dataset, num_streams=4, seed=0)
    transform = TrainTransform(AugmentConfig(), (8, 8), seed=0)
    timetable = Timetable(make_order(fleet))
    for rank in range(world_size):
        held = timetable.holdings(range(rank, rank + 1), world_size)
        with TrainLoader(
            dataset,
            loaded,
            transform=transform,
            batch_images=6 // world_size,
            rank=rank,
            world_size=world_size,
            threads=1,
        ) as loader:
            batches = [next(loader) for _ in range(NUM_EPOCHS * 60 // 6)]
        positions = np.concatenate([batch.positions.numpy() for batch in batches])
        shards = dataset.shard[np.concatenate([batch.rows.numpy() for batch in batches])]
        told = (held.begin <= positions[:, None]) & (positions[:, None] < held.end)
        at_the_time = [set(held.shard[row].tolist()) for row in told]
        assert all(
            shard in open_shards
            for shard, open_shards in zip(shards.tolist(), at_the_time, strict=True)
        )
        # And no holding is made up: each begins and ends with an image that is read.
        for shard, begin, end in zip(*held, strict=True):
            within = positions[(shards == shard) & (begin <= positions) & (positions < end)]
            assert len(within) > 0


def test_more_readers_than_can_be_worked_out_are_spread_evenly(monkeypatch):
    fleet = fleet_of(world_size=64, streams=64, ranks_per_node=1)
    order = make_order(fleet)
    every = Simulation(fleet, order).reading
    monkeypatch.setattr("data_pipeline.simulation._PASSAGES_OF_ALL_READERS", 0)
    readers = spread_readers(Timetable(order), fleet, 1)
    assert [ranks.start for ranks in readers] == [0, 9, 18, 27, 36, 45, 54, 63]
    some = Simulation(fleet, order).reading
    assert every.exact and not some.exact
    assert some.downloads_of_a_shard == pytest.approx(every.downloads_of_a_shard, rel=0.1)


def test_a_world_size_that_divides_the_streams_reads_each_shard_about_once():
    good, bad = fleet_of(streams=8), fleet_of(streams=8, world_size=6)
    readings = [Simulation(fleet, make_order(fleet)).reading for fleet in (good, bad)]
    assert readings[0].downloads_of_a_shard <= (200 + 8) / 200
    assert readings[1].downloads_of_a_shard > 1.9
    assert readings[0].open_shards_of_rank.most < readings[1].open_shards_of_rank.most


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4), (4, 3)])
def test_a_change_counts_what_a_node_lacks(before, after):
    old, new = (
        fleet_of(streams=8, world_size=ranks, ranks_per_node=2) for ranks in (before, after)
    )
    order = make_order(old)
    change = Simulation(old, order).change(old, new)
    was, now = (stepped(fleet, order, 2)[:, :, 2000] for fleet in (old, new))
    had = np.zeros_like(now)  # a new node had nothing
    had[: len(was)] = was[: len(now)]
    assert change.shards_needed_at_once == pytest.approx(now.sum() / len(now))
    assert change.shards_not_in_cache == pytest.approx((now & ~had).sum() / len(now))
    assert change.shards_not_in_cache > 0
    assert change.bytes_not_in_cache == change.shards_not_in_cache * new.shard_bytes
    same = Simulation(old, order).change(old, old)
    assert same.shards_not_in_cache == 0
