"""Broken images: the substitute rule, records, budget and quarantine file."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.broken import (
    BrokenList,
    BrokenRecord,
    append_quarantine,
    broken_budget,
    check_broken_budget,
)
from data_pipeline.image_reader import ImageReader, substitute_rows
from data_pipeline.index import ShardedDataset
from tests.data_pipeline.sample_shards import BROKEN, plain_image, write_dataset


def dataset_with_broken(folder: Path, lengths: list[int], broken: set[int]) -> ShardedDataset:
    """One-coloured images, the colour being the row, but for the broken rows."""
    edges = np.cumsum([0, *lengths]).tolist()
    return write_dataset(
        folder,
        [
            [BROKEN if row in broken else plain_image(row) for row in range(a, a + n)]
            for a, n in zip(edges, lengths, strict=False)
        ],
    )


def reader_of(dataset: ShardedDataset, known: list[BrokenRecord] | None = None) -> ImageReader:
    return ImageReader(
        dataset, max_pixels=10_000, broken=BrokenList(known or []), max_broken_fraction=0.001
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (1, [2, 0, 3, 4, 5, 6]),
        (2, [0, 1, 3, 4, 5, 6]),
        (3, [4, 5, 6, 0, 1, 2]),  # shard 1 is empty
        (6, [4, 5, 0, 1, 2, 3]),
    ],
)
def test_substitutes_follow_the_index(row: int, expected: list[int]) -> None:
    shard = np.array([0, 0, 0, 2, 3, 3, 3], dtype=np.int32)
    assert list(substitute_rows(shard, row)) == expected


def test_a_broken_image_is_replaced_and_noted_once(tmp_path: Path) -> None:
    dataset = dataset_with_broken(tmp_path, [3, 0, 2, 2], broken={2, 3, 4})
    broken = BrokenList()
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=0.001)
    for _ in range(2):
        row, image = reader.readable_image(2)
        assert (row, int(image[0, 0, 0])) == (0, 0)
        row, image = reader.readable_image(3)  # all of its shard is broken
        assert (row, int(image[0, 0, 0])) == (5, 5)
    reader.close()
    assert [(r.row, r.shard, r.key) for r in broken.take_new()] == [
        (2, "part-000000.tar", "00000002"),
        (3, "part-000002.tar", "00000003"),
        (4, "part-000002.tar", "00000004"),
    ]
    assert broken.take_new() == []
    assert len(broken.records()) == len(broken) == 3
    assert all(record.reason for record in broken.records())


def test_a_known_broken_image_is_not_read_again(tmp_path: Path) -> None:
    dataset = dataset_with_broken(tmp_path, [3], broken=set())
    reader = reader_of(dataset, [BrokenRecord(1, "part-000000.tar", "00000001", "was broken")])
    assert reader.readable_image(1)[0] == 2
    reader.close()


def test_a_dataset_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    reader = reader_of(dataset_with_broken(tmp_path, [2, 3], broken={0, 1, 2, 3, 4}))
    with pytest.raises(RefusedInput, match="none of its 5 images can be read") as refused:
        reader.readable_image(3)
    assert str(tmp_path) in str(refused.value)


def test_the_search_ends_with_the_budget(tmp_path: Path) -> None:
    """Eleven broken images in a row are more than ten may be broken."""
    dataset = dataset_with_broken(tmp_path, [15], broken=set(range(12)))
    reader = reader_of(dataset)
    assert reader.readable_image(3)[0] == 12
    with pytest.raises(RefusedInput, match=r"more than the 10 that data\.max_broken_fraction"):
        reader.readable_image(0)


@pytest.mark.parametrize(
    ("num_images", "fraction", "budget"),
    [
        (100, 0.001, 10),
        (10_000, 0.001, 10),
        (14_000_000, 0.001, 14_000),
        (5, 1.0, 10),
        (9, 0.0, 10),
    ],
)
def test_budget(num_images: int, fraction: float, budget: int) -> None:
    assert broken_budget(num_images, fraction) == budget
    check_broken_budget(budget, num_images, fraction)
    with pytest.raises(RefusedInput, match=f"{budget + 1} of {num_images} images cannot be read"):
        check_broken_budget(budget + 1, num_images, fraction)


def test_quarantine_is_a_json_object_a_line(tmp_path: Path) -> None:
    records = [
        BrokenRecord(3, "a.tar", "k\u00e9y", "reason"),
        BrokenRecord(4, "a.tar", "l", "other"),
    ]
    path = tmp_path / "quarantine.jsonl"
    append_quarantine(path, [])
    assert not path.exists()
    append_quarantine(path, records[:1])
    append_quarantine(path, records[1:])
    lines = path.read_text().splitlines()
    assert [BrokenRecord(**json.loads(line)) for line in lines] == records
