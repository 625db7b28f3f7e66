"""From a position to batches: order, pixels, selections, and going on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.data_groups import AugmentConfig, LoaderConfig
from configs.errors import RefusedInput
from data_pipeline import (
    SampleOrder,
    ShardedDataset,
    TrainLoader,
    TrainTransform,
)
from tests.data_pipeline import loader_batches
from tests.data_pipeline.loader_batches import SIZE, assert_same, take, train_loader
from tests.data_pipeline.sample_shards import (
    encode,
    write_dataset,
)

dataset = loader_batches.dataset
no_thread_survives = loader_batches.no_thread_survives


def noise_dataset(folder: Path, count: int = 20) -> ShardedDataset:
    """Images whose crops all differ."""
    rng = np.random.default_rng(0)
    files = [encode(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)) for _ in range(count)]
    return write_dataset(folder, [files[: count // 2], files[count // 2 :]])


# ------------------------------------------------------------------ what is in a batch


def test_batches_follow_the_order(dataset: ShardedDataset) -> None:
    order = SampleOrder(dataset, num_streams=3, seed=5)
    batches = take(train_loader(dataset), 11)  # two epochs and a bit
    for number, batch in enumerate(batches):
        positions = np.arange(4 * number, 4 * number + 4)
        rows = order.rows_at(positions)
        assert batch.positions.tolist() == positions.tolist()
        assert batch.rows.tolist() == rows.tolist()
        assert batch.labels.tolist() == dataset.label[rows].tolist()
        expected = torch.from_numpy(rows).to(torch.uint8).view(4, 1, 1, 1).expand(4, 3, *SIZE)
        assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("read_ahead", [1, 3])
def test_threads_and_read_ahead_do_not_show(tmp_path: Path, threads: int, read_ahead: int) -> None:
    dataset = noise_dataset(tmp_path)
    config = LoaderConfig(threads=threads, read_ahead_batches=read_ahead)
    expected = take(train_loader(dataset, loader=LoaderConfig(threads=3)), 8)
    got = take(train_loader(dataset, loader=config), 8)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_global_batches_have_the_same_pixels_at_any_world_size(
    tmp_path: Path, world_size: int
) -> None:
    dataset = noise_dataset(tmp_path)
    alone = take(train_loader(dataset, batch_images=12), 4)
    shares = [
        take(
            train_loader(dataset, batch_images=12 // world_size, rank=rank, world_size=world_size),
            4,
        )
        for rank in range(world_size)
    ]
    for number, whole in enumerate(alone):
        for rank in range(world_size):
            share = shares[rank][number]
            assert torch.all(share.positions % world_size == rank)
            of_rank = whole.positions % world_size == rank
            for name in ("images", "labels", "positions", "rows"):
                assert torch.equal(getattr(share, name), getattr(whole, name)[of_rank])


def test_a_loader_goes_on_at_any_position(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path)
    undisturbed = take(train_loader(dataset), 9)
    with train_loader(dataset) as first:
        for _ in range(5):
            next(first)
        position = first.position
    assert position == 20
    for a, b in zip(
        take(train_loader(dataset, position=position), 4), undisturbed[5:], strict=True
    ):
        assert_same(a, b)


def test_skip_to_drops_what_was_read_ahead(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path)
    undisturbed = take(train_loader(dataset), 9)
    with train_loader(dataset) as loader:
        assert_same(next(loader), undisturbed[0])
        loader.skip_to(24)
        assert loader.position == 24
        assert_same(next(loader), undisturbed[6])
        loader.skip_to(4)
        assert_same(next(loader), undisturbed[1])
        assert loader.position == 8


def test_a_selection_shows_its_images_only(dataset: ShardedDataset) -> None:
    dataset.shard_path(2).unlink()  # rows 7 to 11: not selected, so not read
    rows = np.array([0, 3, 6, 12, 20])
    batch = take(train_loader(dataset.select(rows), batch_images=5), 1)[0]
    assert sorted(batch.images[:, 0, 0, 0].tolist()) == rows.tolist()
    assert sorted(batch.rows.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(batch.images[:, 0, 0, 0] % 10, batch.labels.to(torch.uint8))


def test_an_order_of_other_images_is_refused(dataset: ShardedDataset) -> None:
    order = SampleOrder(dataset, num_streams=3, seed=0)
    with pytest.raises(RefusedInput, match="other images"):
        TrainLoader(
            dataset.select(np.arange(5)),
            order,
            transform=TrainTransform(AugmentConfig(), SIZE, 0),
            batch_images=2,
        )


def test_to_gives_images_and_labels(dataset: ShardedDataset) -> None:
    batch = take(train_loader(dataset), 1)[0]
    images, labels = batch.to("cpu")
    assert torch.equal(images, batch.images) and torch.equal(labels, batch.labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_survive_their_copies(dataset: ShardedDataset) -> None:
    """The memory of a batch is used again while its copy may still be under way."""
    order = SampleOrder(dataset, num_streams=3, seed=5)
    copies = []
    with train_loader(dataset, batch_images=64) as loader:
        for number in range(50):
            batch = next(loader)
            assert batch.images.is_pinned()
            torch.cuda._sleep(2_000_000)  # the copy waits behind this kernel
            copies.append((number, batch.to("cuda")[0]))
            del batch
    for number, images in copies:
        rows = order.rows_at(np.arange(64 * number, 64 * number + 64))
        assert images[:, 0, 0, 0].cpu().tolist() == rows.tolist()
