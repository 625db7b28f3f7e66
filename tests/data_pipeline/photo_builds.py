"""Builds of photographs, some of them copies, beside a file that is none."""

from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from tests.data_pipeline import official_layouts as layouts


@pytest.fixture
def photos(tmp_path):
    """Twelve JPEG files, some of them copies of others, and one that is no image."""
    root = layouts.image_folder(tmp_path / "photos")
    layouts.write(root / "train/class2/notes.txt", b"roses")
    return root


def build_photos(photos, output, **options):
    return build_dataset(
        "image-folder", photos, "train", output, **{"shard_images": 3, "workers": 1, **options}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def num_copies(photos: Path) -> int:
    """Images that equal an earlier one, counted the simple way."""
    files = [path.read_bytes() for path in (photos / "train").rglob("*.jpg")]
    assert 0 < len(files) - len(set(files)) < len(files) - 1
    return len(files) - len(set(files))


@pytest.fixture
def expected(photos, tmp_path):
    build_photos(photos, tmp_path / "expected")
    return files_of(tmp_path / "expected")
