"""Broken images: the substitute rule, records, budget and quarantine file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.broken import (
    BrokenList,
    BrokenRecord,
    add_new_records,
    append_quarantine,
    broken_budget,
    check_broken_budget,
    reset_quarantine,
)
from data_pipeline.image_reader import ImageReader, substitute_spans
from data_pipeline.index import ShardedDataset
from tests.data_pipeline.sample_shards import BROKEN, plain_dataset, plain_image, write_dataset


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


def shown(reader: ImageReader, row: int, met: set[int] | None = None) -> tuple[int, int]:
    """The row that is shown for a row, and the colour of its pixels."""
    found = reader.readable_image(row, set() if met is None else met)
    assert found is not None
    return found[0], int(found[1][0, 0, 0])


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
    assert [r for span in substitute_spans(shard, row) for r in span] == expected


def test_a_broken_image_is_replaced_and_noted_once(tmp_path: Path) -> None:
    dataset = dataset_with_broken(tmp_path, [3, 0, 2, 2], broken={2, 3, 4})
    broken = BrokenList()
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=0.001)
    for _ in range(2):
        met: set[int] = set()
        assert shown(reader, 2, met) == (0, 0)
        assert shown(reader, 3, met) == (5, 5)  # all of its shard is broken
        assert met == {2, 3, 4}
        reader.note(met)
    reader.close()
    assert [(r.row, r.shard, r.key) for r in broken.take_new()] == [
        (2, "part-000000.tar", "00000002"),
        (3, "part-000002.tar", "00000003"),
        (4, "part-000002.tar", "00000004"),
    ]
    assert broken.take_new() == []
    assert len(broken.records()) == len(broken) == 3
    assert all(record.reason for record in broken.records())


def test_records_hold_no_secrets(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [2])
    (entry,) = dataset.manifest.shards
    signed = replace(entry, path="https://me:hunter2@host/a.tar?sig=hunter2")
    dataset.manifest = replace(dataset.manifest, shards=(signed,))
    reader = reader_of(dataset, [BrokenRecord(1, "a.tar", "00000001", "torn")])
    assert reader.record(1).shard == "https://***@host/a.tar?..."
    assert "hunter2" not in reader.name(1)
    reader.close()


def test_what_threads_find_ahead_is_listed_only_when_noted(tmp_path: Path) -> None:
    broken = BrokenList()
    dataset = dataset_with_broken(tmp_path, [3], broken={1})
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=0.001)
    assert reader.image(1) is None
    assert broken.records() == []
    reader.note({1})
    assert [record.row for record in broken.records()] == [1]
    reader.close()


def test_a_known_broken_image_is_not_read_again(tmp_path: Path) -> None:
    dataset = dataset_with_broken(tmp_path, [3], broken=set())
    reader = reader_of(dataset, [BrokenRecord(1, "part-000000.tar", "00000001", "was broken")])
    assert shown(reader, 1) == (2, 2)
    reader.close()


def test_a_missing_shard_is_replaced_by_the_next_and_counts_whole(tmp_path: Path) -> None:
    """Rows 3 to 5 are gone, and 6 is broken: all of them show 7."""
    dataset = dataset_with_broken(tmp_path, [3, 3, 3], broken={6})
    dataset.shard_path(1).unlink()
    broken = BrokenList()
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=0.001)
    met: set[int] = set()
    assert [shown(reader, row, met) for row in (5, 3, 4)] == [(7, 7)] * 3
    reader.note({5})
    assert [record.row for record in broken.take_new()] == [3, 4, 5]
    assert {record.reason for record in broken.records()} == {"the file is missing"}
    reader.note(met)
    assert [record.row for record in broken.take_new()] == [6]
    reader.close()


def test_the_search_goes_over_lost_shards_without_looking_into_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_with_broken(tmp_path, [400, 500, 2], broken=set())
    for shard in (0, 1):
        dataset.shard_path(shard).unlink()
    broken = BrokenList()
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=1.0)
    assert shown(reader, 399) == (900, 900 % 256)
    reader.note({0, 400})
    assert len(broken) == 900
    reader.close()
    # The checkpoint's list says as much: no file is looked for again.
    resumed = ImageReader(
        dataset, max_pixels=10_000, broken=BrokenList(broken.records()), max_broken_fraction=1.0
    )
    rows: list[int] = []
    image = resumed.image
    monkeypatch.setattr(resumed, "image", lambda row, _: rows.append(row) or image(row))
    assert shown(resumed, 3) == (900, 900 % 256)
    assert len(rows) < 6
    resumed.close()


def test_a_dataset_without_a_readable_image_gives_none_and_is_refused(tmp_path: Path) -> None:
    broken = BrokenList()
    dataset = dataset_with_broken(tmp_path, [2, 3], broken={0, 1, 2, 3, 4})
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=0.001)
    met: set[int] = set()
    assert reader.readable_image(3, met) is None
    reader.note(met)
    with pytest.raises(RefusedInput, match="5 of 5 images cannot be read"):
        check_broken_budget(broken.records(), 5, 0.001)
    reader.close()


def test_the_search_ends_with_the_budget(tmp_path: Path) -> None:
    """Eleven broken images in a row are more than ten may be broken."""
    dataset = dataset_with_broken(tmp_path, [15], broken=set(range(12)))
    reader = reader_of(dataset)
    assert shown(reader, 3) == (12, 12)
    met: set[int] = set()
    assert reader.readable_image(0, met) is None
    assert met == set(range(11))
    reader.close()


def test_a_lost_file_system_fills_no_memory(tmp_path: Path) -> None:
    """Past the budget of ten, one shard more is listed, not all hundred images."""
    dataset = plain_dataset(tmp_path, [20] * 5)
    for number in range(5):
        dataset.shard_path(number).unlink()
    broken = BrokenList()
    reader = ImageReader(dataset, max_pixels=10_000, broken=broken, max_broken_fraction=0.001)
    reader.note(row for row in range(0, 100, 20) if reader.image(row) is None)
    assert len(broken) == 20
    reader.close()


@pytest.mark.parametrize(
    ("num_images", "fraction", "budget"),
    [
        (100, 0.001, 10),
        (10_000, 0.001, 10),
        (14_000_000, 0.001, 14_000),
        (50, 1.0, 49),  # one must be left
        (9, 0.0, 8),
    ],
)
def test_budget(num_images: int, fraction: float, budget: int) -> None:
    records = [BrokenRecord(row, "a.tar", str(row), "torn") for row in range(budget + 1)]
    check_broken_budget(records[:-1], num_images, fraction)
    with pytest.raises(RefusedInput, match=f"{budget + 1} of {num_images} images .* the {budget} "):
        check_broken_budget(records, num_images, fraction)
    assert broken_budget(num_images, fraction) >= budget


def test_the_refusal_names_the_shards_that_lost_most() -> None:
    lost = [BrokenRecord(row, "b.tar", str(row), "the file is missing") for row in range(100)]
    torn = [BrokenRecord(200 + row, f"{'cdef'[row]}.tar", "k", "torn") for row in range(4)]
    with pytest.raises(RefusedInput) as refused:
        check_broken_budget([*torn, *lost], 1000, 0.001)
    message = str(refused.value)
    assert "104 of 1000 images cannot be read, more than the 10 that" in message
    assert "tolerates: 100 of shard b.tar (the file is missing), 1 of shard c.tar (torn)" in message
    assert "the others of 2 more shards" in message and "listed in" not in message
    with pytest.raises(
        RefusedInput, match=r"that max_broken = 0\.001 .* listed in /run/q\.jsonl\."
    ):
        check_broken_budget(lost, 1000, 0.001, option="max_broken", listed_in=Path("/run/q.jsonl"))


def test_new_records_come_once_and_by_row_whoever_found_them() -> None:
    a, b, c = (BrokenRecord(row, "a.tar", str(row), "torn") for row in (3, 1, 2))
    known = {2: c}
    assert add_new_records(known, [a, c, b, a]) == [b, a]
    assert known == {1: b, 2: c, 3: a}
    assert add_new_records(known, [b]) == []


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
    reset_quarantine(path, records[:1])
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [3]
    reset_quarantine(path, [])
    assert path.read_text() == ""
    reset_quarantine(tmp_path / "other.jsonl", [])
    assert not (tmp_path / "other.jsonl").exists()
