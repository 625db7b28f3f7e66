"""Reads what an index needs from one WebDataset tar that was written elsewhere.

An image is a sample's `jpg`, `jpeg`, `png` or `webp`; what its label is, `foreign_labels` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from configs.errors import RefusedInput
from data_pipeline.foreign_labels import RawLabel, Unlabelled, mapped_label, read_label
from data_pipeline.foreign_places import ShardPlace, local_file
from data_pipeline.image_header import EXTENSIONS, NotAnImage, read_header
from data_pipeline.index_table import INDEX_SCHEMA
from data_pipeline.manifest import file_sha256
from data_pipeline.shard_record import SkippedFile
from data_pipeline.tar_samples import DamagedTar, MemberPlace, TarSample, read_samples


@dataclass(frozen=True)
class ForeignShard:
    """What indexing found in one tar. `table` still lacks `label`, which may need all shards."""

    place: ShardPlace
    num_bytes: int
    sha256: str
    table: pa.Table
    labels: tuple[RawLabel, ...]
    skipped: tuple[SkippedFile, ...]


def read_shard(place: ShardPlace, label_field: str) -> ForeignShard:
    """Find the images and labels of one tar.

    Raises:
        RefusedInput: It is not a plain, complete tar, or cannot be had.
    """
    with local_file(place) as path:
        return _read(place, path, label_field)


def _read(place: ShardPlace, path: Path, label_field: str) -> ForeignShard:
    columns: dict[str, list] = {name: [] for name in INDEX_SCHEMA.names if name != "label"}
    labels: list[RawLabel] = []
    skipped: list[SkippedFile] = []
    try:
        with open(path, "rb") as file:
            for sample in read_samples(path):
                try:
                    image, header = _image(sample, file)
                    labels.append(read_label(sample, file, label_field))
                except (NotAnImage, Unlabelled) as error:
                    skipped.append(SkippedFile(f"{place}: {sample.key}", str(error)))
                    continue
                values = (0, sample.key, image.extension, image.offset, image.size, *header, 0)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    except (DamagedTar, OSError) as error:
        raise RefusedInput(f"{place}: {error}") from error
    schema = pa.schema([field for field in INDEX_SCHEMA if field.name != "label"])
    return ForeignShard(
        place=place,
        num_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        table=pa.table(columns, schema=schema),
        labels=tuple(labels),
        skipped=tuple(skipped),
    )


def with_mapped_labels(shard: ForeignShard, label_map: Mapping[str, str]) -> ForeignShard:
    """The shard with the classes that labels become; samples of other labels are skipped."""
    labels: list[RawLabel] = []
    kept: list[int] = []
    skipped = list(shard.skipped)
    keys = shard.table["key"].to_pylist()
    for row, (key, label) in enumerate(zip(keys, shard.labels, strict=True)):
        try:
            labels.append(mapped_label(label, label_map))
            kept.append(row)
        except Unlabelled as error:
            skipped.append(SkippedFile(f"{shard.place}: {key}", str(error)))
    table = shard.table.take(pa.array(np.array(kept, dtype=np.int64)))
    return replace(shard, table=table, labels=tuple(labels), skipped=tuple(skipped))


def _image(sample: TarSample, file: IO[bytes]) -> tuple[MemberPlace, tuple[int, int]]:
    """Place and (width, height) of a sample's image."""
    images = sample.images()
    if len(images) != 1:
        found = ", ".join(sample.members) or "nothing"
        raise NotAnImage(f"{len(images)} images in the sample, which holds {found}; expected one")
    header = read_header(images[0].read(file))
    if header.format not in EXTENSIONS:
        raise NotAnImage(f"a {header.format} file; expected JPEG, PNG or WebP")
    return images[0], (header.width, header.height)
