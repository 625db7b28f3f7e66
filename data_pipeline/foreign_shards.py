"""Reads what an index needs from one WebDataset tar that was written elsewhere.

An image is a sample's `jpg`, `jpeg`, `png` or `webp`; what its label is, `foreign_labels` says.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from configs.errors import RefusedInput
from data_pipeline.foreign_labels import RawLabel, Unlabelled, mapped_label, read_label
from data_pipeline.image_header import EXTENSIONS, NotAnImage, read_header
from data_pipeline.index_table import INDEX_SCHEMA
from data_pipeline.manifest import file_sha256
from data_pipeline.shard_record import SkippedFile
from data_pipeline.tar_samples import DamagedTar, MemberPlace, TarSample, read_samples


@dataclass(frozen=True)
class ForeignShard:
    """What indexing found in one tar. `table` still lacks `label`, which may need all shards."""

    path: Path
    num_bytes: int
    sha256: str
    table: pa.Table
    labels: tuple[RawLabel, ...]
    skipped: tuple[SkippedFile, ...]


def find_shards(pattern: str) -> list[Path]:
    """Local files that a pattern with `{000..099}`, `{a,b}`, `*`, `?` and `[...]` names, absolute.

    Raises:
        RefusedInput: It is a URL or a command, a file of a brace list is missing, or nothing fits.
    """
    from webdataset.shardlists import expand_urls  # imports torch

    if "://" in pattern or pattern.startswith("pipe:"):
        raise RefusedInput(
            f"--shards {pattern}: only local files can be indexed; download the shards first"
        )
    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise RefusedInput(f"--shards {pattern}: {error}") from error
    found: list[Path] = []
    for name in names:
        matches = sorted(glob.glob(name))
        if not matches:
            raise RefusedInput(f"--shards {pattern}: there is no file {name}")
        found += [Path(match).absolute() for match in matches]
    folders = [path for path in found if not path.is_file()]
    if folders:
        raise RefusedInput(f"--shards {pattern}: {folders[0]} is not a file; name the tars, *.tar")
    return list(dict.fromkeys(found))


def read_shard(path: Path, label_field: str) -> ForeignShard:
    """Find the images and labels of one tar.

    Raises:
        RefusedInput: It is not a plain, complete tar.
    """
    columns: dict[str, list] = {name: [] for name in INDEX_SCHEMA.names if name != "label"}
    labels: list[RawLabel] = []
    skipped: list[SkippedFile] = []
    try:
        with open(path, "rb") as file:
            for sample in read_samples(path):
                try:
                    place, header = _image(sample, file)
                    labels.append(read_label(sample, file, label_field))
                except (NotAnImage, Unlabelled) as error:
                    skipped.append(SkippedFile(f"{path}: {sample.key}", str(error)))
                    continue
                values = (0, sample.key, place.extension, place.offset, place.size, *header, 0)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    except (DamagedTar, OSError) as error:
        raise RefusedInput(f"{path}: {error}") from error
    schema = pa.schema([field for field in INDEX_SCHEMA if field.name != "label"])
    return ForeignShard(
        path=path,
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
            skipped.append(SkippedFile(f"{shard.path}: {key}", str(error)))
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
