"""Evaluation: each image once over all ranks, and what is not scored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import RefusedInput
from data_pipeline import (
    EvalLoader,
    EvalTransform,
    LoadingFailed,
    ShardedDataset,
)
from tests.data_pipeline import loader_batches
from tests.data_pipeline.loader_batches import assert_same, broken_dataset, our_threads

dataset = loader_batches.dataset
no_thread_survives = loader_batches.no_thread_survives


# ------------------------------------------------------------------ evaluation


def eval_loader(dataset: ShardedDataset, **options: Any) -> EvalLoader:
    settings: dict[str, Any] = {
        "transform": EvalTransform((6, 6), 6),
        "batch_images": 4,
        "threads": 2,
    }
    return EvalLoader(dataset, **(settings | options))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("batch_images", [1, 4, 21, 50])
def test_each_image_once_over_all_ranks(
    dataset: ShardedDataset, world_size: int, batch_images: int
) -> None:
    seen, num_batches = [], set()
    for rank in range(world_size):
        loader = eval_loader(dataset, batch_images=batch_images, rank=rank, world_size=world_size)
        batches = list(loader)
        num_batches |= {len(batches), len(loader)}
        for batch in batches:
            assert batch.images.shape == (batch_images, 3, 6, 6)
            real = batch.labels >= 0
            seen += batch.rows[real].tolist()
            assert batch.images[real, 0, 0, 0].tolist() == batch.rows[real].tolist()
            assert torch.equal(batch.labels[real], batch.rows[real] % 10)
            assert set(batch.labels[~real].tolist()) <= {-1}
            assert set(batch.rows[~real].tolist()) <= {-1}
            assert not batch.images[~real].any()
    assert sorted(seen) == list(range(21))
    assert len(num_batches) == 1


def test_evaluation_may_be_repeated_and_left_early(dataset: ShardedDataset) -> None:
    loader = eval_loader(dataset)
    first = list(loader)
    for batch in loader:
        assert_same(batch, first[0])
        break
    del batch
    assert our_threads() == []
    for a, b in zip(loader, first, strict=True):
        assert_same(a, b)


def test_broken_images_are_not_scored(tmp_path: Path) -> None:
    loader = eval_loader(broken_dataset(tmp_path, {2, 9}))
    batches = list(loader)
    labels = torch.cat([batch.labels for batch in batches])
    rows = torch.cat([batch.rows for batch in batches])
    assert (labels >= 0).sum() == 13
    assert set(rows[rows >= 0].tolist()) == set(range(15)) - {2, 9}
    assert not torch.cat([batch.images for batch in batches])[rows < 0].any()
    assert [record.row for record in loader.broken] == [2, 9]
    list(loader)
    assert [record.row for record in loader.broken] == [2, 9]


def test_an_evaluation_of_ruins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="11 of 15 images cannot be read"):
        list(eval_loader(broken_dataset(tmp_path, set(range(11))), batch_images=15))


def test_a_lost_shard_is_not_scored_and_counts_each_image_once(tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, set(), lengths=(5, 6, 4))
    dataset.shard_path(1).unlink()
    lost: list[int] = []
    for rank in range(2):
        loader = eval_loader(dataset, rank=rank, world_size=2, refuse_alone=False)
        shown = torch.cat([batch.rows for batch in loader])
        assert not set(shown.tolist()) & set(range(5, 11))
        lost += [record.row for record in loader.broken]
    assert sorted(lost) == list(range(5, 11))


def test_ranks_may_leave_the_refusal_of_ruins_to_who_evaluates(tmp_path: Path) -> None:
    loader = eval_loader(broken_dataset(tmp_path, set(range(11))), refuse_alone=False)
    list(loader)
    assert len(loader.broken) == 11


def test_an_error_in_an_evaluation_names_shard_and_key(dataset: ShardedDataset) -> None:
    class Failing(EvalTransform):
        def __call__(self, image: torch.Tensor, out: torch.Tensor) -> None:
            raise MemoryError("no room")

    with pytest.raises(LoadingFailed, match=r"image 0000000\d of shard part-000000.tar .*no room"):
        list(eval_loader(dataset, transform=Failing((6, 6), 6)))
