"""Shards as webdataset's own writer makes them."""

from pathlib import Path

import pytest
import webdataset

from data_pipeline.foreign_index import IndexOptions
from tests.data_pipeline.official_layouts import image_bytes

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


OPTIONS = IndexOptions(name="theirs", split="train", workers=1)


def write_shards(folder: Path, samples: list[dict], per_shard: int = 3) -> str:
    """Write samples with webdataset's own writer; gives the pattern that names the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "theirs-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return str(folder / "theirs-*.tar")


def labelled(number: int, **labels) -> dict:
    """A sample with an image of one of the four extensions, 8 + number pixels wide."""
    extension = list(FORMATS)[number % 4]
    data = image_bytes(number, size=(8 + number, 6), format=FORMATS[extension])
    return {"__key__": f"some/dir.d/{number:05d}", extension: data, **labels}


@pytest.fixture
def samples():
    return [labelled(number, cls=number % 2) for number in range(5)]
