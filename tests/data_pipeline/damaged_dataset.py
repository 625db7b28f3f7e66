"""A dataset that tests may damage."""

import os
import shutil
from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.dataset import open_dataset
from tests.data_pipeline import official_layouts as layouts


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Thirty images in four shards of 8, 8, 8 and 6."""
    folder = tmp_path_factory.mktemp("built")
    source = layouts.image_folder(folder / "in", images=10)
    build_dataset("image-folder", source, "train", folder / "d", shard_images=8, workers=1)
    return folder / "d"


@pytest.fixture
def dataset(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "d"))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def spoil(folder: Path, row: int) -> None:
    """Replace an image by zeros from its middle on; its header stays."""
    opened = open_dataset(folder)
    half = int(opened.size[row]) // 2
    overwrite(opened.shard_path(opened.shard[row]), int(opened.offset[row]) + half, bytes(half))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cut(folder: Path) -> set[int]:
    opened = open_dataset(folder)
    os.truncate(folder / "train-000001.tar", int(opened.offset[13]) + 5)
    return set(range(13, 16))


def unlink(folder: Path) -> set[int]:
    (folder / "train-000002.tar").unlink()
    return set(range(16, 24))


def two_images(folder: Path) -> set[int]:
    spoil(folder, 3)
    spoil(folder, 29)
    return {3, 29}
