"""`index.parquet`, a row per image, and `ShardedDataset`, which answers where each image lies.

Nothing here opens a tar: an image is read at (shard, offset, size), in any order.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import RefusedInput
from data_pipeline.manifest import INDEX_FILE, Manifest, data_digest

# `offset` is where the image's bytes begin in the tar; `source_row` the image's running number in
# the source's own order, which shuffled shards otherwise forget.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("extension", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
    ]
)
_DIGEST_FIELD = b"vitrain.index_digest"
_STRINGS_HASHED_AT_ONCE = 65_536


class ShardedDataset:
    """The images of a dataset, or a selection of them, in index order (shard by shard, by offset).

    Columns are numpy arrays of shape `(num_images,)`: `shard` (int32), `offset` and `size` (int64,
    bytes), `label` (int64), `width` and `height` (int32, pixels), `source_row` (int64).
    """

    def __init__(
        self, folder: Path, manifest: Manifest, table: pa.Table, base_rows: np.ndarray | None = None
    ) -> None:
        """Hold an index that was checked by `open_dataset`; `base_rows` are set by `select`."""
        self.folder = folder
        self.manifest = manifest
        self._table = table
        self._base_rows = base_rows

    @property
    def digest(self) -> str:
        """Identity of the whole data, whatever the selection."""
        return self.manifest.digest

    @cached_property
    def filter_digest(self) -> str:
        """Identity of the selection (hex), or "" when every image is in."""
        if self._base_rows is None:
            return ""
        return hashlib.sha256(self._base_rows.astype("<i8").tobytes()).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        return self.manifest.classes

    @property
    def num_classes(self) -> int:
        """Number of classes of the dataset, present in the selection or not."""
        return len(self.manifest.classes)

    @property
    def num_shards(self) -> int:
        """Number of shards of the dataset, also those that a selection has emptied."""
        return len(self.manifest.shards)

    @property
    def num_images(self) -> int:
        """Number of images of the selection."""
        return int(self._table.num_rows)

    def __len__(self) -> int:
        """Number of images of the selection."""
        return self.num_images

    @cached_property
    def shard(self) -> np.ndarray:
        """Number of the shard in `manifest.shards`, ascending."""
        return self._column("shard")

    @cached_property
    def offset(self) -> np.ndarray:
        """First byte of the image's file in its tar."""
        return self._column("offset")

    @cached_property
    def size(self) -> np.ndarray:
        """Length of the image's file in bytes."""
        return self._column("size")

    @cached_property
    def label(self) -> np.ndarray:
        """Class number."""
        return self._column("label")

    @cached_property
    def width(self) -> np.ndarray:
        """Width in pixels as the file's header has it, before any EXIF rotation."""
        return self._column("width")

    @cached_property
    def height(self) -> np.ndarray:
        """Height in pixels as the file's header has it, before any EXIF rotation."""
        return self._column("height")

    @cached_property
    def source_row(self) -> np.ndarray:
        """Running number of the image in the source's own order."""
        return self._column("source_row")

    def key(self, row: int) -> str:
        """Member name of the image without its extension."""
        return str(self._table["key"][int(row)].as_py())

    def extension(self, row: int) -> str:
        """Extension of the image's member name: jpg, png, ..."""
        return str(self._table["extension"][int(row)].as_py())

    def shard_path(self, shard_number: int) -> Path:
        """Where a shard lies.

        Raises:
            RefusedInput: The manifest names a URL; only local shards can be read. (Manifests are
                downloaded, and a `pipe:` URL would run a command.)
        """
        path = self.manifest.shards[int(shard_number)].path
        if "://" in path or path.startswith("pipe:"):
            raise RefusedInput(
                f"{self.folder}: shard {path!r} is not a local file; download it and index it there"
            )
        return self.folder / path

    def select(self, rows: np.ndarray) -> ShardedDataset:
        """The same data restricted to `rows`, given as ascending, distinct rows of this selection.

        Raises:
            RefusedInput: No row is given, or they are not ascending rows of this dataset.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or rows.size == 0:
            raise RefusedInput(
                f"{self.folder}: a selection must hold at least one of the {self.num_images} images"
            )
        if rows[0] < 0 or rows[-1] >= self.num_images or np.any(np.diff(rows) <= 0):
            raise RefusedInput(
                f"{self.folder}: a selection must be ascending rows within 0..{self.num_images - 1}"
            )
        base_rows = rows if self._base_rows is None else self._base_rows[rows]
        return ShardedDataset(
            self.folder, self.manifest, self._table.take(pa.array(rows)), base_rows
        )

    def _column(self, name: str) -> np.ndarray:
        return column_values(self._table, name)


def open_dataset(folder: Path | str) -> ShardedDataset:
    """Open the dataset in `folder`; reads manifest and index, no tar.

    Raises:
        RefusedInput: `folder` is not a dataset, was written by a newer version, or its manifest and
            index do not belong together.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    table = read_index(folder)
    problems = disagreements(manifest, table)
    if problems:
        raise RefusedInput(
            f"{folder}: {problems[0]}; `python -m data_pipeline.verify {folder}` lists everything "
            "that is wrong, then build anew"
        )
    return ShardedDataset(folder, manifest, table)


def write_index(folder: Path, table: pa.Table) -> str:
    """Write `index.parquet` under a temporary name, rename it, and return its digest (hex)."""
    digest = index_digest(table)
    table = table.cast(INDEX_SCHEMA).replace_schema_metadata({_DIGEST_FIELD: digest.encode()})
    temporary = folder / f"{INDEX_FILE}.partial"
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, folder / INDEX_FILE)
    return digest


def read_index(folder: Path) -> pa.Table:
    """Read `index.parquet` of `folder`, every column in one chunk.

    Raises:
        RefusedInput: It is missing or not an index that this version can read.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise RefusedInput(f"{path} is missing; build the dataset anew")
    try:
        # Not read_table: it imports pyarrow.dataset, and with it pandas, for half a second.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise RefusedInput(f"{path} cannot be read ({error}); build the dataset anew") from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise RefusedInput(
            f"{path} has the columns {table.schema.names}, expected {INDEX_SCHEMA.names}; "
            "build the dataset anew"
        )
    return table.combine_chunks()


def column_values(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column without nulls as a numpy array."""
    # pyarrow's own to_numpy would import pandas, for half a second.
    return np.from_dlpack(table[name].combine_chunks())


def index_digest(table: pa.Table) -> str:
    """SHA-256 (hex) of an index's content, independent of how parquet stores it."""
    digest = hashlib.sha256()
    for field in INDEX_SCHEMA:
        column = table[field.name]
        digest.update(f"{field.name}:{field.type}:{len(column)}\n".encode())
        if pa.types.is_large_string(field.type):
            for start in range(0, len(column), _STRINGS_HASHED_AT_ONCE):
                strings = column.slice(start, _STRINGS_HASHED_AT_ONCE).to_pylist()
                digest.update("".join(f"{string}\0" for string in strings).encode())
        else:
            values = column_values(table, field.name)
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def recorded_digest(table: pa.Table) -> str:
    """The digest that was stored inside `index.parquet` when it was written, or ""."""
    return (table.schema.metadata or {}).get(_DIGEST_FIELD, b"").decode(errors="replace")


def disagreements(manifest: Manifest, table: pa.Table) -> list[str]:
    """What is wrong between a manifest and an index, as far as these two can tell; cheap."""
    found = []
    if manifest.digest != data_digest(manifest.classes, manifest.shards, manifest.index_digest):
        found.append(
            "the digest in manifest.json does not follow from its classes, shards and index"
        )
    if recorded_digest(table) != manifest.index_digest:
        found.append("index.parquet is not the one that manifest.json was written for")
    if table.num_rows != manifest.num_images:
        found.append(
            f"manifest.json counts {manifest.num_images} images, index.parquet {table.num_rows}"
        )
    if table.num_rows == 0:
        return [*found, "the dataset holds no images"]
    return found + _bad_columns(manifest, table)


def _bad_columns(manifest: Manifest, table: pa.Table) -> list[str]:
    found = []
    shard, label = column_values(table, "shard"), column_values(table, "label")
    num_shards, num_classes = len(manifest.shards), len(manifest.classes)
    if shard.min() < 0 or shard.max() >= num_shards:
        return [f"index.parquet names shard {shard.max()}, manifest.json lists {num_shards} shards"]
    counts = np.bincount(shard, minlength=num_shards)
    for entry, count in zip(manifest.shards, counts, strict=True):
        if count != entry.num_images:
            found.append(
                f"{entry.path}: manifest.json counts {entry.num_images} images, "
                f"index.parquet {count}"
            )
    if label.min() < 0 or label.max() >= num_classes:
        found.append(
            f"index.parquet has labels {label.min()}..{label.max()}, "
            f"manifest.json {num_classes} classes"
        )
    offset, size = column_values(table, "offset"), column_values(table, "size")
    same_shard = shard[1:] == shard[:-1]
    overlapping = same_shard & (offset[1:] < offset[:-1] + size[:-1])
    if np.any(shard[1:] < shard[:-1]) or np.any(overlapping) or offset.min() < 0 or size.min() < 0:
        found.append("index.parquet is not in the order of the shards, or its images overlap")
    return found
