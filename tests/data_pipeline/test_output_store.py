"""Where a build writes: a file is there completely or not at all."""

import os
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from data_pipeline.output_store import open_store


class Stopped(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), Stopped()])
def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path: Path, error) -> None:
    store = open_store(tmp_path)
    store.write("shard.tar", b"old")
    with pytest.raises(type(error)), store.create("shard.tar") as file:
        file.write(b"half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["shard.tar"]
    assert store.read("shard.tar") == b"old"
    assert store.is_intact("shard.tar", 3, store_digest(b"old"))
    assert not store.is_intact("shard.tar", 3, store_digest(b"new"))


def test_what_is_no_folder_is_refused() -> None:
    with pytest.raises(RefusedInput, match="--output /dev/null/x cannot be read: Not a directory"):
        open_store(Path("/dev/null/x")).sizes()


def store_digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
