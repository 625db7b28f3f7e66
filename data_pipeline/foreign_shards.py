"""Reads what an index needs from one WebDataset tar that was written elsewhere.

An image is a sample's `jpg`, `jpeg`, `png` or `webp`; its label the sample's `cls` (a number or a
class name), or a field of its `json`.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from configs.errors import RefusedInput
from data_pipeline.image_header import EXTENSIONS, NotAnImage, read_header
from data_pipeline.index_table import INDEX_SCHEMA
from data_pipeline.manifest import file_sha256
from data_pipeline.shard_record import SkippedFile
from data_pipeline.tar_samples import DamagedTar, MemberPlace, TarSample, read_samples

RawLabel = int | str


class Unlabelled(Exception):
    """A sample whose label cannot be used; the message is the reason."""


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


def read_label(sample: TarSample, file: IO[bytes], label_field: str) -> RawLabel:
    """The label of a sample as it is written there: a number or a name.

    Raises:
        Unlabelled: There is none, or it is neither a whole number nor text.
    """
    if "cls" in sample.members:
        return _number_or_name(sample.members["cls"].read(file))
    if "json" not in sample.members:
        raise Unlabelled("neither .cls nor .json beside the image")
    try:
        fields = json.loads(sample.members["json"].read(file))
    except ValueError as error:
        raise Unlabelled(f"its .json cannot be read: {error}") from error
    if not isinstance(fields, dict) or label_field not in fields:
        raise Unlabelled(f"its .json has no field '{label_field}'")
    label = fields[label_field]
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise Unlabelled(f"'{label_field}' is {label!r}, neither a whole number nor text")
    return label


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


def _number_or_name(data: bytes) -> RawLabel:
    text = data.decode("utf-8", errors="replace").strip()
    if not text:
        raise Unlabelled("its .cls is empty")
    try:
        return int(text)
    except ValueError:
        return text
