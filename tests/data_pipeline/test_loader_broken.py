"""Broken images and lost shards in training: substitutes, lists and the budget."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.data_groups import LoaderConfig
from configs.errors import RefusedInput
from data_pipeline import (
    SampleOrder,
    ShardedDataset,
)
from data_pipeline.broken import BrokenRecord, BrokenShard, add_new_records
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline import loader_batches
from tests.data_pipeline.loader_batches import broken_dataset, take, train_loader
from tests.data_pipeline.sample_shards import (
    encode,
    plain_dataset,
    plain_image,
    write_dataset,
)

dataset = loader_batches.dataset
no_thread_survives = loader_batches.no_thread_survives


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_substitute_brings_image_label_and_row(tmp_path: Path, world_size: int) -> None:
    dataset = broken_dataset(tmp_path, {2, 9, 10, 11, 12, 13, 14})
    stand_in = {2: 3, 9: 5} | dict.fromkeys(range(10, 15), 0)
    order = SampleOrder(dataset, num_streams=3, seed=5)
    for rank in range(world_size):
        loader = train_loader(dataset, batch_images=5, rank=rank, world_size=world_size)
        for batch in take(loader, 6 // world_size):
            wanted = order.rows_at(batch.positions.numpy()).tolist()
            shown = [stand_in.get(row, row) for row in wanted]
            assert batch.rows.tolist() == shown
            assert batch.labels.tolist() == [row % 10 for row in shown]
            assert batch.images[:, 1, 2, 3].tolist() == shown


def test_broken_images_are_noted_once(tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, {2, 9})
    with train_loader(dataset, batch_images=15) as loader:
        next(loader)
        found = loader.take_new_broken()
        assert sorted(record.row for record in found) == [2, 9]
        assert {record.shard for record in found} == {"part-000000.tar", "part-000001.tar"}
        next(loader)
        next(loader)
        assert loader.take_new_broken() == []
        assert sorted(record.row for record in loader.broken) == [2, 9]
    with train_loader(dataset, batch_images=15, quarantine=found) as resumed:
        next(resumed)
        assert resumed.take_new_broken() == []
        assert sorted(record.row for record in resumed.broken) == [2, 9]


def test_no_readable_image_ends_training(tmp_path: Path) -> None:
    loader = train_loader(broken_dataset(tmp_path, set(range(15))))
    with pytest.raises(RefusedInput, match="images cannot be read"), loader:
        next(loader)


DAMAGE = ["missing", "cut", "longer", "digest", "file-in-its-way"]


def damage_shard(dataset: ShardedDataset, number: int, how: str, patch: Any) -> None:
    """Spoil a whole shard; a digest is only looked at by who brings shards here, so it is told."""
    path = dataset.shard_path(number)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1500)
    elif how == "longer":
        os.truncate(path, path.stat().st_size + 512)
    elif how == "file-in-its-way":
        path.unlink()
        path.mkdir()
    else:
        read = ShardReader.read

        def told(reader: ShardReader, row: int) -> bytearray:
            if dataset.shard[row] == number:
                raise BrokenShard("its SHA-256 is not the one in the manifest")
            return read(reader, row)

        patch.setattr(ShardReader, "read", told)


def trained_on(dataset: ShardedDataset, world_size: int, stops: list[int]) -> list[Any]:
    """Rows and quarantine after each of 5 global batches of 12, as the ranks put it together.

    `stops` are the steps after which a run is ended and resumed, at the next of the world sizes
    that follow each other: 1, 2, 3, 4, 6, ...
    """
    sizes = [size for size in (1, 2, 3, 4, 6) if size >= world_size] + [1, 2]
    known: dict[int, BrokenRecord] = {}
    history = []
    for start, end in pairwise([0, *stops, 5]):
        size = sizes.pop(0)
        loaders = [
            train_loader(
                dataset,
                batch_images=12 // size,
                rank=rank,
                world_size=size,
                position=12 * start,
                quarantine=list(known.values()),
                loader=LoaderConfig(threads=2, read_ahead_batches=1 + size),
                refuse_alone=False,
            )
            for rank in range(size)
        ]
        for _ in range(start, end):
            batches = [next(loader) for loader in loaders]
            found = [record for loader in loaders for record in loader.take_new_broken()]
            new = add_new_records(known, found)
            shown = sorted(
                (position, row, batch.images[slot].tolist())
                for batch in batches
                for slot, (position, row) in enumerate(
                    zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)
                )
            )
            history.append((shown, new))
        for loader in loaders:
            loader.close()
    return history


@pytest.mark.parametrize("how", DAMAGE)
def test_a_lost_shard_is_the_same_at_every_world_size_and_after_a_resume(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = broken_dataset(tmp_path, {2, 17}, lengths=(9, 6, 10, 11))
    damage_shard(dataset, 1, how, monkeypatch)
    expected = trained_on(dataset, 1, [])
    for world_size in (2, 3, 4, 6):
        assert trained_on(dataset, world_size, []) == expected
    assert trained_on(dataset, 1, [2, 3]) == expected
    assert trained_on(dataset, 3, [1, 4]) == expected

    order = SampleOrder(dataset, num_streams=3, seed=5)
    stand_in = {2: 3, 17: 18} | dict.fromkeys(range(9, 15), 15)
    listed: set[int] = set()
    for step, (shown, new) in enumerate(expected):
        wanted = order.rows_at(np.arange(12 * step, 12 * step + 12)).tolist()
        assert [row for _, row, _ in shown] == [stand_in.get(row, row) for row in wanted]
        # What is listed after a step is what its positions met, though threads have read ahead.
        met = {row for row in wanted if row in stand_in}
        lost = met | (set(range(9, 15)) if met & set(range(9, 15)) else set())
        listed |= lost
        assert {record.row for record in new} <= lost
    assert listed == set(stand_in)  # more than an epoch
    assert sorted(r.row for _, new in expected for r in new) == sorted(stand_in)


def test_past_the_budget_black_images_come_until_all_ranks_stop(tmp_path: Path) -> None:
    """A rank that stopped alone would leave the others waiting, and say nothing."""
    dataset = broken_dataset(tmp_path, set(), lengths=(5, 12, 5))
    dataset.shard_path(1).unlink()
    with train_loader(dataset, batch_images=22, refuse_alone=False) as loader:
        batch = next(loader)
        lost = (batch.rows >= 5) & (batch.rows < 17)
        assert lost.sum() == 12
        assert not batch.images[lost].any()
        assert batch.labels.tolist() == dataset.label[batch.rows.numpy()].tolist()
        assert [record.row for record in loader.take_new_broken()] == list(range(5, 17))
        next(loader)
    with (
        train_loader(dataset, batch_images=22) as loader,
        pytest.raises(RefusedInput, match=r"12 of shard part-000001.tar \(the file is missing\)"),
    ):
        next(loader)


def test_a_checkpoints_list_stays_out_though_the_shard_is_back(tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, set(), lengths=(5, 4, 5))
    with train_loader(dataset, batch_images=14) as loader:
        next(loader)
        listed = [BrokenRecord(row, "part-000001.tar", str(row), "gone") for row in range(5, 9)]
        loader.skip_to(0, listed)
        batch = next(loader)
        assert not set(batch.rows.tolist()) & set(range(5, 9))
        assert loader.broken == listed
        assert loader.take_new_broken() == []


def test_what_threads_met_ahead_is_not_listed_yet(tmp_path: Path) -> None:
    """How far they are ahead depends on the machine; a checkpoint must not."""
    order = SampleOrder(plain_dataset(tmp_path / "sound", [5, 5, 5]), num_streams=3, seed=5)
    row = int(order.rows_at(np.array([2]))[0])
    dataset = broken_dataset(tmp_path / "broken", {row})
    settings = {"batch_images": 1, "loader": LoaderConfig(threads=1, read_ahead_batches=4)}
    with train_loader(dataset, **settings) as loader:
        for expected in ([], [], [row]):
            for pending in loader._threads._pending:
                pending.wait()
            next(loader)
            assert [record.row for record in loader.take_new_broken()] == expected


def test_a_skip_forgets_what_was_met_ahead(tmp_path: Path) -> None:
    order = SampleOrder(plain_dataset(tmp_path / "sound", [5, 5, 5]), num_streams=3, seed=5)
    row = int(order.rows_at(np.array([2]))[0])
    dataset = broken_dataset(tmp_path / "broken", {row})
    settings = {"batch_images": 1, "loader": LoaderConfig(threads=1, read_ahead_batches=4)}
    with train_loader(dataset, **settings) as loader:
        next(loader)
        loader.skip_to(3)
        for _ in range(5):
            next(loader)
        assert loader.take_new_broken() == []
        loader.skip_to(2)
        next(loader)
        assert [record.row for record in loader.take_new_broken()] == [row]


def test_too_large_images_are_broken(tmp_path: Path) -> None:
    large = encode(np.zeros((50, 50, 3), np.uint8))
    dataset = write_dataset(tmp_path, [[plain_image(0), large]])
    config = LoaderConfig(threads=1, max_image_pixels=2_000)
    with train_loader(dataset, loader=config) as loader:
        assert next(loader).rows.tolist() == [0] * 4
        assert "50 x 50 pixels" in loader.broken[0].reason
