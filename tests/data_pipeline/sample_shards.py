"""Small datasets for tests, written with tarfile: shards, index and manifest as the writer does."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from data_pipeline.index import (
    INDEX_SCHEMA,
    Manifest,
    ShardedDataset,
    ShardEntry,
    open_dataset,
    write_index,
)

BROKEN = b"\xff\xd8\xff this is no image"


def encode(pixels: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    """An image file of uint8 pixels (H, W, 3) or of a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def plain_image(number: int, height: int = 6, width: int = 8) -> bytes:
    """A PNG whose every byte is `number`, so that a batch tells which image it holds."""
    return encode(np.full((height, width, 3), number % 256, np.uint8))


def blank_image(dataset: ShardedDataset, row: int) -> None:
    """Overwrite the second half of an image's file with zeros, within its shard."""
    half = int(dataset.size[row]) // 2
    with open(dataset.shard_path(int(dataset.shard[row])), "r+b") as file:
        file.seek(int(dataset.offset[row]) + half)
        file.write(bytes(int(dataset.size[row]) - half))


def write_dataset(
    folder: Path, shards: Sequence[Sequence[bytes]], num_classes: int = 10
) -> ShardedDataset:
    """Write a dataset of the given image files; the label of an image is its row mod classes."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list] = {name: [] for name in INDEX_SCHEMA.names}
    entries, row = [], 0
    for number, files in enumerate(shards):
        path = folder / f"part-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for data in files:
                member = tarfile.TarInfo(f"{row:08d}.img")
                member.size = len(data)
                offset = tar.offset + 512
                tar.addfile(member, io.BytesIO(data))
                values = (number, f"{row:08d}", "img", offset, len(data), row % num_classes, 8, 6)
                for name, value in zip(INDEX_SCHEMA.names, (*values, row), strict=True):
                    columns[name].append(value)
                row += 1
        data = path.read_bytes()
        entries.append(
            ShardEntry(path.name, len(files), len(data), hashlib.sha256(data).hexdigest())
        )
    digest = write_index(folder, pa.table(columns, schema=INDEX_SCHEMA))
    Manifest.describe(
        identity=("test", "train"),
        classes=tuple(f"class{number}" for number in range(num_classes)),
        shards=tuple(entries),
        source={"source": "test"},
        index_digest=digest,
    ).save(folder)
    return open_dataset(folder)


def plain_dataset(folder: Path, shard_images: Sequence[int]) -> ShardedDataset:
    """A dataset of one-coloured images, the colour being the row; shards of the given lengths."""
    edges = np.cumsum([0, *shard_images])
    return write_dataset(
        folder,
        [[plain_image(row) for row in range(a, b)] for a, b in pairwise(edges)],
    )
