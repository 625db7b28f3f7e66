"""A large index is memory-mapped from a file that is written once, and never trusted when stale."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline import index_cache
from data_pipeline.index import ShardedDataset, open_dataset, read_index, write_index
from data_pipeline.index_cache import CACHE_FILE, was_checked
from data_pipeline.order import SampleOrder
from tests.data_pipeline.sample_shards import plain_dataset

COLUMNS = ("shard", "offset", "size", "label", "width", "height", "source_row")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset that counts as large from now on."""
    plain_dataset(tmp_path / "data", [5, 0, 7, 3])
    monkeypatch.setattr(index_cache, "CACHED_FROM_IMAGES", 15)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "private"))
    return tmp_path / "data"


def is_mapped(dataset: ShardedDataset) -> bool:
    return was_checked(dataset._table)


def assert_same(a: ShardedDataset, b: ShardedDataset) -> None:
    assert a.digest == b.digest and a.filter_digest == b.filter_digest
    for name in COLUMNS:
        found, expected = getattr(a, name), getattr(b, name)
        assert found.dtype == expected.dtype and np.array_equal(found, expected), name
    assert [a.key(row) for row in range(len(a))] == [b.key(row) for row in range(len(b))]
    assert [a.extension(row) for row in range(len(a))] == [b.extension(0)] * len(b)


def unmapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ShardedDataset:
    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "CACHED_FROM_IMAGES", 10**9)
        return open_dataset(folder)


def test_the_mapped_index_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = unmapped(folder, monkeypatch)
    assert not (folder / CACHE_FILE).exists()
    first, again = open_dataset(folder), open_dataset(folder)
    assert (folder / CACHE_FILE).is_file()
    for dataset in (first, again):
        assert is_mapped(dataset)
        assert_same(dataset, expected)
        rows = np.array([1, 4, 9])
        assert_same(dataset.select(rows), expected.select(rows))
        orders = [SampleOrder(each, num_streams=4, seed=1) for each in (dataset, expected)]
        assert (
            orders[0].rows_at(np.arange(40)).tolist() == orders[1].rows_at(np.arange(40)).tolist()
        )


def test_columns_lie_in_the_mapped_file(folder: Path) -> None:
    """Not in memory of the process: that is what the file is for."""
    dataset = open_dataset(open_dataset(folder).folder)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    spans = [line.split()[0] for line in maps.read_text().splitlines() if CACHE_FILE in line]
    for name in COLUMNS:
        address = getattr(dataset, name).__array_interface__["data"][0]
        ends = [[int(end, 16) for end in span.split("-")] for span in spans]
        assert any(start <= address < end for start, end in ends), name


def test_a_second_opening_reads_neither_parquet_nor_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(folder)
    monkeypatch.setattr(index_cache, "read_index", lambda _: pytest.fail("read parquet"))
    monkeypatch.setattr("data_pipeline.index_table._bad_columns", lambda *_: pytest.fail("rows"))
    assert is_mapped(open_dataset(folder))


def test_small_indexes_get_no_second_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "CACHED_FROM_IMAGES", 16)
    assert not is_mapped(open_dataset(folder))
    assert not (folder / CACHE_FILE).exists()


@pytest.mark.parametrize("change", ["rebuilt", "touched", "cut", "garbage", "empty"])
def test_a_stale_or_damaged_file_is_written_anew(
    folder: Path, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(folder)
    cache = folder / CACHE_FILE
    if change == "rebuilt":
        shutil.move(cache, tmp_path / CACHE_FILE)
        shutil.rmtree(folder)
        plain_dataset(folder, [4, 4, 4, 4])
        (folder / CACHE_FILE).unlink()
        shutil.move(tmp_path / CACHE_FILE, cache)
    elif change == "touched":
        os.utime(folder / "index.parquet", ns=(1, 1))
    elif change == "cut":
        os.truncate(cache, cache.stat().st_size // 2)
    else:
        cache.write_bytes(b"" if change == "empty" else os.urandom(5000))
    before = cache.read_bytes()
    dataset = open_dataset(folder)
    assert is_mapped(dataset) and cache.read_bytes() != before
    assert_same(dataset, unmapped(folder, monkeypatch))


def test_an_index_of_another_manifest_is_refused_and_not_kept(folder: Path) -> None:
    write_index(folder, read_index(folder).slice(0, 14))
    for _ in range(2):
        with pytest.raises(RefusedInput, match="not the one that manifest"):
            open_dataset(folder)
    assert not (folder / CACHE_FILE).exists()


def test_a_changed_manifest_is_noticed_beside_a_mapped_index(folder: Path) -> None:
    open_dataset(folder)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"class3"', '"other"'))
    with pytest.raises(RefusedInput, match="does not follow from its classes"):
        open_dataset(folder)


@pytest.mark.parametrize("both", [False, True])
def test_a_read_only_folder_is_cached_elsewhere_or_read(
    folder: Path, both: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in the way of the lock stands for one that is read-only: root may write anywhere."""
    (folder / f".{CACHE_FILE}.lock").mkdir()
    if both:
        (tmp_path / "private").write_text("no folder")
    dataset = open_dataset(folder)
    assert is_mapped(dataset) != both
    assert bool(list((tmp_path).glob("private/vitrain/index-*.arrow"))) != both
    assert_same(dataset, unmapped(folder, monkeypatch))


def test_ranks_that_start_together_write_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], index_cache._write

    def count(*arguments: object) -> None:
        written.append(1)
        write(*arguments)

    monkeypatch.setattr(index_cache, "_write", count)
    found: list[ShardedDataset] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_dataset(folder))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6 and all(is_mapped(dataset) for dataset in found)
    assert len(written) == 1
    assert {path.name for path in folder.iterdir() if "arrow" in path.name} == {
        CACHE_FILE,
        f".{CACHE_FILE}.lock",
    }


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    dataset = open_dataset(folder)
    assert not is_mapped(dataset) and len(dataset) == 15
    assert not list(folder.glob("*.arrow")) and not list(folder.glob(".*.tmp"))
