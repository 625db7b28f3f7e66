"""Twelve small photographs in a folder, and builds of them."""

from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from tests.data_pipeline import official_layouts as layouts


@pytest.fixture
def photos(tmp_path):
    """Twelve JPEG files of three classes in `train`."""
    return layouts.image_folder(tmp_path / "photos")


def build_photos(photos, output, **options):
    options = {"shard_images": 5, "workers": 1, **options}
    return build_dataset("image-folder", photos, "train", output, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
