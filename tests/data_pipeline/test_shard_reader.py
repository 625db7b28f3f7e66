"""Reading by offset: the right bytes, a bounded number of open files, clear errors."""

import os
import threading
from pathlib import Path

import pytest

from configs.errors import RefusedInput
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


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [2, 2])
    dataset.shard_path(1).unlink()
    reader = ShardReader(dataset)
    assert reader.read(1) == plain_image(1)
    with pytest.raises(RefusedInput, match=r"part-000001\.tar is missing"):
        reader.read(2)
    reader.close()


def test_a_short_shard_is_named_with_the_image(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [2, 2])
    os.truncate(dataset.shard_path(1), int(dataset.offset[3]) + 10)
    reader = ShardReader(dataset)
    assert reader.read(2) == plain_image(2)
    with pytest.raises(RefusedInput, match=r"part-000001\.tar ends at byte \d+, .* 00000003;"):
        reader.read(3)
    reader.close()


def test_the_bound_follows_the_systems_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader = ShardReader(plain_dataset(tmp_path, [1]))
    assert 1 <= reader.max_open <= 4096
    assert soft == resource.RLIM_INFINITY or reader.max_open < soft
