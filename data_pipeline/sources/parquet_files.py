"""Parquet files with a column of images, as the datasets hub lays them out.

An image is a struct of `bytes` and `path`; the label a whole number, whose names are in the file's
metadata where the `datasets` library wrote it, or text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.errors import RefusedInput
from data_pipeline.sources.input_files import InputFile, InputFolder
from data_pipeline.sources.stream_source import StreamedImage, files_fingerprint, kind_of_fault

_GET = (
    "give a parquet file, or a folder with data/SPLIT-*.parquet, SPLIT-*.parquet or "
    "SPLIT/*.parquet in it"
)
_ROWS_READ_AT_ONCE = 64


@dataclass(frozen=True)
class _Columns:
    """What a file's columns are: the image's, the label's, and class names if it knows them."""

    image: str
    label: str
    names: tuple[str, ...] | None


@dataclass
class ParquetSource:
    """The rows of some parquet files, in the order of the files' names."""

    name: str
    split: str
    classes: tuple[str, ...]
    files: list[InputFile]
    columns: _Columns
    num_images: int | None

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.num_bytes for file in self.files)

    def stream(self, start: int = 0) -> Iterator[StreamedImage]:
        """Rows file by file; a row group's images are in memory at a time."""
        for path in self.files:
            with _reading(path) as file:
                num_rows = file.metadata.num_rows
                if start < num_rows:
                    yield from self._rows(file, str(path), start)
                start = max(0, start - num_rows)

    def _rows(self, file: pq.ParquetFile, where: str, start: int) -> Iterator[StreamedImage]:
        """The rows of a file from `start` on; row groups before it are not read."""
        number_of = {name: number for number, name in enumerate(self.classes)}
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        first = int(np.searchsorted(np.cumsum(sizes), start, side="right"))
        row = sum(sizes[:first])
        names = [self.columns.image, self.columns.label]
        groups = range(first, len(sizes))
        try:
            for batch in file.iter_batches(_ROWS_READ_AT_ONCE, row_groups=groups, columns=names):
                images = batch[self.columns.image]
                for place, label in enumerate(batch[self.columns.label].to_pylist()):
                    if row >= start:
                        number = number_of.get(label, label)
                        read = partial(_image_file, images, place, number, len(self.classes))
                        is_known = isinstance(number, int)
                        yield StreamedImage(number if is_known else 0, f"{where}: row {row}", read)
                    row += 1
        except (OSError, pa.ArrowException) as error:
            fault = kind_of_fault(error)
            raise fault(f"{where} cannot be read past row {row}: {error}") from error

    def fingerprint(self) -> str:
        """Identity of the files' names and sizes and of the classes."""
        return files_fingerprint(self.files, self.classes)

    def options(self) -> dict[str, Any]:
        """The columns that were read."""
        return {"image_column": self.columns.image, "label_column": self.columns.label}

    def notices(self) -> list[str]:
        """None."""
        return []


def read_parquet(
    place: Path | str,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ParquetSource:
    """Open one file, or the files of a split in a folder.

    Raises:
        RefusedInput: A file is missing or damaged, or the columns are not those of labelled images.
    """
    names = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}/*.parquet")
    folder = InputFolder(place)
    files = folder.find((*names, f"{split}.parquet", f"*/{split}/*.parquet"), _GET)
    columns = _find_columns(files[0], image_column, label_column)
    num_rows, labels = 0, []
    for path in files:
        with _reading(path) as file:
            num_rows += file.metadata.num_rows
            labels.append(_distinct_labels(path, file, columns))
    return ParquetSource(
        name=folder.name,
        split=split,
        classes=columns.names or _class_names(files, columns, set().union(*labels)),
        files=files,
        columns=columns,
        num_images=num_rows,
    )


def _image_file(images: pa.Array, place: int, label: Any, num_classes: int) -> bytes:
    """The image of a row; OSError says what is wrong with it or its label."""
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise OSError(f"label {label!r} is not one of {num_classes} classes")
    image = images[place].as_py()
    data = image.get("bytes") if isinstance(image, dict) else image
    if not data:
        raise OSError("the row holds no bytes of an image")
    return bytes(data)


@contextmanager
def _reading(path: InputFile) -> Iterator[pq.ParquetFile]:
    try:
        with path.open() as raw, pq.ParquetFile(raw) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise RefusedInput(f"{path} is not a complete parquet file: {error}") from error


def _find_columns(path: InputFile, image: str | None, label: str | None) -> _Columns:
    """Columns by name, by what the `datasets` library noted, or by their types."""
    with _reading(path) as file:
        schema = file.schema_arrow
    features = _features(schema)
    is_image = {field.name: _is_image(field.type) for field in schema}
    label_kinds = {
        field.name: not is_image[field.name]
        and (
            pa.types.is_integer(field.type)
            or pa.types.is_large_string(field.type)
            or pa.types.is_string(field.type)
        )
        for field in schema
    }
    noted = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    image = _choose(path, "--image-column", image, [n for n, fits in is_image.items() if fits])
    label = _choose(
        path,
        "--label-column",
        label,
        noted if label is None and noted else [n for n, fits in label_kinds.items() if fits],
    )
    names = features.get(label, {}).get("names")
    return _Columns(image, label, tuple(map(str, names)) if names else None)


def _choose(path: InputFile, option: str, wanted: str | None, candidates: list[str]) -> str:
    if wanted is not None and wanted not in candidates:
        raise RefusedInput(
            f"{option} {wanted}: {path} has no such column of that kind; "
            f"it has {', '.join(candidates) or 'none'}"
        )
    if wanted is None and len(candidates) != 1:
        raise RefusedInput(
            f"{path} has {len(candidates)} columns that may be meant "
            f"({', '.join(candidates) or 'none'}): name one with {option}"
        )
    return wanted or candidates[0]


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the `datasets` library noted about the columns, by column; empty if it did not."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in noted.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError):
        return {}


def _distinct_labels(path: InputFile, file: pq.ParquetFile, columns: _Columns) -> set[Any]:
    """Labels that occur; only their column is read, and not at all where names are known."""
    if columns.names is not None:
        return set()
    try:
        labels = file.read(columns=[columns.label])[columns.label]
    except (KeyError, OSError, pa.ArrowException) as error:
        raise RefusedInput(f"{path}: column '{columns.label}' is unreadable: {error}") from error
    return set(pc.unique(labels).to_pylist()) - {None}


def _class_names(files: list[InputFile], columns: _Columns, labels: set[Any]) -> tuple[str, ...]:
    """Texts in sorted order, or every number up to the largest."""
    if not labels:
        raise RefusedInput(f"{files[0]}: column '{columns.label}' holds no labels")
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(labels))
    if min(labels) < 0:
        raise RefusedInput(
            f"{files[0]}: column '{columns.label}' holds {min(labels)}, which marks images without "
            "a label; take another split"
        )
    return tuple(str(number) for number in range(max(labels) + 1))
