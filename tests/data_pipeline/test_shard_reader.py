"""Reading by offset: the right bytes, a bounded number of open files, clear errors."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import shard_reader
from data_pipeline.broken import BrokenImage, BrokenShard
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.sample_shards import plain_dataset, plain_image


def open_descriptors(folder: Path) -> int:
    """Descriptors of this process that lie in `folder`."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(folder.resolve())) for link in links)


def test_reads_every_image_with_few_files_open(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [3, 0, 2, 4, 1])
    reader = ShardReader(dataset, max_open=2)
    for row in [*range(10), *reversed(range(10))]:
        assert reader.read(row) == plain_image(row)
        assert open_descriptors(tmp_path) <= 2
    reader.close()
    assert open_descriptors(tmp_path) == 0


def test_many_threads_never_read_a_closed_file(tmp_path: Path) -> None:
    """With one file kept open, every read evicts another thread's shard."""
    dataset = plain_dataset(tmp_path, [5] * 8)
    expected = [plain_image(row) for row in range(40)]
    reader = ShardReader(dataset, max_open=1)
    wrong: list[int] = []

    def read_all(start: int) -> None:
        for turn in range(400):
            row = (start + turn * 7) % 40
            if reader.read(row) != expected[row]:
                wrong.append(row)

    threads = [threading.Thread(target=read_all, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    reader.close()
    assert open_descriptors(tmp_path) == 0


def test_a_shard_in_use_outlives_close(tmp_path: Path) -> None:
    reader = ShardReader(plain_dataset(tmp_path, [2]), max_open=4)
    with reader._shard(0) as descriptor:
        reader.close()
        assert os.pread(descriptor, 1, 0)
    assert open_descriptors(tmp_path) == 0


def test_a_missing_shard_is_broken(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [2, 2])
    dataset.shard_path(1).unlink()
    reader = ShardReader(dataset)
    assert reader.read(1) == plain_image(1)
    with pytest.raises(BrokenShard, match="the file is missing"):
        reader.read(2)
    reader.close()


@pytest.mark.parametrize("change", [-2000, 512])
def test_a_shard_of_another_size_is_broken(tmp_path: Path, change: int) -> None:
    """Also where the image itself would lie within the file: it may be another image."""
    dataset = plain_dataset(tmp_path, [2, 2])
    size = dataset.shard_path(1).stat().st_size
    os.truncate(dataset.shard_path(1), size + change)
    reader = ShardReader(dataset)
    with pytest.raises(BrokenShard, match=f"it has {size + change} bytes, the .* says {size}"):
        reader.read(2)
    reader.close()
    assert open_descriptors(tmp_path) == 0


def test_a_shard_that_is_cut_while_open_is_broken(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [2, 2])
    reader = ShardReader(dataset)
    assert reader.read(2) == plain_image(2)
    os.truncate(dataset.shard_path(1), int(dataset.offset[3]) + 10)
    with pytest.raises(BrokenShard, match=r"was cut to \d+ bytes while it was in use"):
        reader.read(3)
    reader.close()


class FailingStorage:
    """Stands where `os` does in the reader; calls fail with an error number so many times."""

    def __init__(self, name: str, number: int, times: int) -> None:
        self.name, self.number, self.times = name, number, times

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if name == self.name and self.times:
                self.times -= 1
                raise OSError(self.number, os.strerror(self.number))
            return getattr(os, name)(*arguments)

        value = getattr(os, name)
        return call if callable(value) else value


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_RETRY_PAUSES_SECONDS", (0.0, 0.01))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("name", ["open", "preadv"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_storage_error_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    reader = ShardReader(plain_dataset(tmp_path, [2]))
    monkeypatch.setattr(shard_reader, "os", FailingStorage(name, errno.ESTALE, times))
    assert reader.read(1) == plain_image(1)
    reader.close()


@pytest.mark.usefixtures("quick_retries")
def test_a_storage_error_that_stays_is_broken_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(plain_dataset(tmp_path, [2]))
    monkeypatch.setattr(shard_reader, "os", FailingStorage("preadv", errno.EIO, 3))
    with pytest.raises(BrokenImage, match="reading it fails: Input/output error"):
        reader.read(1)
    assert reader.read(1) == plain_image(1)
    reader.close()
    monkeypatch.setattr(shard_reader, "os", FailingStorage("open", errno.EACCES, 3))
    with pytest.raises(BrokenShard, match="it cannot be opened: Permission denied"):
        ShardReader(plain_dataset(tmp_path, [2])).read(1)


def test_running_out_of_files_does_not_blame_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(plain_dataset(tmp_path, [2]))
    monkeypatch.setattr(shard_reader, "os", FailingStorage("open", errno.EMFILE, 1))
    with pytest.raises(OSError, match="Too many open files"):
        reader.read(1)


def test_the_bound_follows_the_systems_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader = ShardReader(plain_dataset(tmp_path, [1]))
    assert 1 <= reader.max_open <= 4096
    assert soft == resource.RLIM_INFINITY or reader.max_open < soft
