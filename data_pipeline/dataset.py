"""`ShardedDataset`, which answers where each image of a dataset lies, and selections of it.

Nothing here opens a tar: an image is read at (shard, offset, size), in any order.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.index_cache import open_index, was_checked
from data_pipeline.index_table import column_values, disagreements
from data_pipeline.label_sets import LabelSets
from data_pipeline.location import (
    HERE,
    Origin,
    ShardAccess,
    ShardLocation,
    dataset_url,
    is_url,
    locate_shard,
    shown,
)
from data_pipeline.manifest import Manifest


class ShardedDataset:
    """The images of a dataset, or a selection of them, in index order (shard by shard, by offset).

    Columns are numpy arrays of shape `(num_images,)`: `shard` (int32), `offset` and `size` (int64,
    bytes), `label` (int64), `width` and `height` (int32, pixels), `source_row` (int64).
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        table: pa.Table,
        *,
        base_rows: np.ndarray | None = None,
        classes: tuple[str, ...] | None = None,
        origin: Origin = HERE,
    ) -> None:
        """Hold an index that was checked by `open_dataset`.

        `base_rows` are set by `select`, `classes` by `relabel`. Of a dataset at a URL, `folder` is
        where the copy of manifest and index was opened.
        """
        self.folder = folder
        self.manifest = manifest
        self.origin = origin
        self._table = table
        self._base_rows = base_rows
        self._classes = classes

    @property
    def place(self) -> str:
        """Its folder or URL, for messages."""
        return self.origin.url or str(self.folder)

    @property
    def digest(self) -> str:
        """Identity of the whole data, whatever the selection."""
        return self.manifest.digest

    @cached_property
    def filter_digest(self) -> str:
        """Identity of selection and classes (hex), or "" for the whole data with its own."""
        if self._base_rows is None and self._classes is None:
            return ""
        digest = hashlib.sha256()
        if self._base_rows is not None:
            digest.update(self._base_rows.astype("<i8").tobytes())
        if self._classes is not None:
            digest.update(json.dumps(self._classes).encode())
            digest.update(self.label.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        return self.manifest.classes if self._classes is None else self._classes

    @property
    def num_classes(self) -> int:
        """Number of classes, present in the selection or not."""
        return len(self.classes)

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

    @property
    def is_multi_label(self) -> bool:
        """Whether images have `label_sets`; `label` is -1 throughout then."""
        return "positive" in self._table.schema.names

    @property
    def set_classes(self) -> int | None:
        """Number of classes that label sets are about; None where images have one label each."""
        return self.num_classes if self.is_multi_label else None

    @cached_property
    def label_sets(self) -> LabelSets:
        """What is known of each image's classes; only where `is_multi_label`."""
        return LabelSets(self._table)

    def require_single_labels(self, options: SubsetConfig) -> None:
        """Refuse filters by an image's one class where images have label sets."""
        names = ("label_map", "classes", "fraction", "images_per_class")
        given = [name for name in names if getattr(options, name) is not None]
        if self.is_multi_label and given:
            raise RefusedInput(
                f"data.{given[0]} chooses images by their one class, but those of {self.place} "
                "have label sets; choose classes when building, with --classes"
            )

    def images_per_class(self) -> np.ndarray:
        """Images of each class, int64 (num_classes,); of label sets, the positive ones."""
        if self.is_multi_label:
            return self.label_sets.counts(self.num_classes)
        return np.bincount(self.label, minlength=self.num_classes)

    def class_text(self, row: int) -> str:
        """Names of the classes that an image shows, for people."""
        shown = self.label_sets.of_row(row).positive if self.is_multi_label else (self.label[row],)
        return ", ".join(self.classes[int(number)] for number in shown)

    @cached_property
    def shard(self) -> np.ndarray:
        """Number of the shard in `manifest.shards`, ascending."""
        return self._column("shard")

    @property
    def images_of_shards(self) -> np.ndarray:
        """Images of each shard, int64 (num_shards,), also of those that a selection has emptied."""
        if self._base_rows is None:
            # The index agrees with the manifest; looking there would touch a page for each shard.
            counts = [shard.num_images for shard in self.manifest.shards]
            return np.array(counts, dtype=np.int64)
        return np.diff(np.searchsorted(self.shard, np.arange(self.num_shards + 1)))

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

    def keys(self) -> pa.Array:
        """Member names of all images without their extensions, as large strings."""
        return self._table["key"].combine_chunks()

    def key(self, row: int) -> str:
        """Member name of the image without its extension."""
        return str(self._table["key"][int(row)].as_py())

    def extension(self, row: int) -> str:
        """Extension of the image's member name: jpg, png, ..."""
        return str(self._table["extension"][int(row)].as_py())

    def shard_location(self, shard_number: int) -> ShardLocation:
        """Where a shard lies: the path of a local file, or the URL of a remote one.

        Raises:
            RefusedInput: The manifest names a place outside its own folder or URL, or a command,
                and the user did not allow it.
        """
        name = self.manifest.shards[int(shard_number)].path
        return locate_shard(self.origin.url or self.folder, name, self.origin.access)

    def shard_path(self, shard_number: int) -> Path:
        """Where a shard lies that is a local file.

        Raises:
            RefusedInput: It is a remote one, or lies where `shard_location` may not look.
        """
        location = self.shard_location(shard_number)
        if isinstance(location, str):
            raise RefusedInput(
                f"{self.place}: shard {shown(location)} is not a local file; download it first"
            )
        return location

    def select(self, rows: np.ndarray) -> ShardedDataset:
        """The same data restricted to `rows`, given as ascending, distinct rows of this selection.

        Raises:
            RefusedInput: No row is given, or they are not ascending rows of this dataset.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or rows.size == 0:
            raise RefusedInput(
                f"{self.place}: a selection must hold at least one of the {self.num_images} images"
            )
        if rows[0] < 0 or rows[-1] >= self.num_images or np.any(np.diff(rows) <= 0):
            raise RefusedInput(
                f"{self.place}: a selection must be ascending rows within 0..{self.num_images - 1}"
            )
        if rows.size == self.num_images:
            return self
        return ShardedDataset(
            self.folder,
            self.manifest,
            self._table.take(pa.array(rows)),
            base_rows=rows if self._base_rows is None else self._base_rows[rows],
            classes=self._classes,
            origin=self.origin,
        )

    def relabel(self, classes: tuple[str, ...], numbers: np.ndarray) -> ShardedDataset:
        """The same images under other classes: what was class `c` becomes class `numbers[c]`."""
        if classes == self.classes and np.array_equal(numbers, np.arange(len(classes))):
            return self
        labels = pa.array(np.asarray(numbers, dtype=np.int64)[self.label])
        place = self._table.schema.get_field_index("label")
        table = self._table.set_column(place, self._table.schema.field(place), labels)
        return ShardedDataset(
            self.folder,
            self.manifest,
            table,
            base_rows=self._base_rows,
            classes=classes,
            origin=self.origin,
        )

    def _column(self, name: str) -> np.ndarray:
        return column_values(self._table, name)


def open_dataset(place: Path | str, access: ShardAccess | None = None) -> ShardedDataset:
    """Open the dataset in a folder or at a URL; reads manifest and index, no tar.

    Args:
        place: the folder, or the URL of one, of any kind that fsspec knows.
        access: how remote shards are reached, and which places the manifest may name.

    Raises:
        RefusedInput: It is not a dataset, was written by a newer version, or its manifest and index
            do not belong together.
        ShardUnavailable: Manifest or index could not be fetched.
    """
    access = access or ShardAccess()
    url = dataset_url(str(place)) if is_url(place) else None
    folder = Path(place) if url is None else _local_copy(url, access)
    manifest = Manifest.load(folder)
    table = open_index(folder, manifest)
    problems = disagreements(manifest, table, rows_too=not was_checked(table))
    if problems:
        raise RefusedInput(
            f"{place}: {problems[0]}; `python -m data_pipeline.verify {place}` lists everything "
            "that is wrong, then build anew"
        )
    return ShardedDataset(folder, manifest, table, origin=Origin(url, access))


def _local_copy(url: str, access: ShardAccess) -> Path:
    from data_pipeline.remote.folder_copy import local_copy  # imports requests and fsspec

    return local_copy(url, access)
