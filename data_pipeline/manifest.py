"""`manifest.json`: what a dataset of shards is called, holds and was built from.

The manifest is written last, so a folder without one is not (yet) a dataset.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.durable_files import write_atomically
from configs.errors import RefusedInput

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.parquet"
FORMAT_NAME = "vitrain-shards"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)  # thousands of them, in every process
class ShardEntry:
    """One tar file. `path` is relative to the manifest's folder, or absolute for foreign shards."""

    path: str
    num_images: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says about a dataset.

    `source` tells what built it (source, options). `digest` identifies the data: the content of
    every shard, the classes and the index, but not names, paths or how it was built, so a dataset
    that was moved keeps its digest. `foreign` marks shards that were written elsewhere and only
    indexed.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    num_images: int
    shards: tuple[ShardEntry, ...]
    source: dict[str, Any]
    index_digest: str
    digest: str
    foreign: bool = False

    @classmethod
    def describe(
        cls,
        *,
        identity: tuple[str, str],
        classes: tuple[str, ...],
        shards: tuple[ShardEntry, ...],
        source: dict[str, Any],
        index_digest: str,
        foreign: bool = False,
    ) -> Manifest:
        """Make a manifest whose counts and digest follow from its parts.

        `identity` is (name, split).
        """
        return cls(
            name=identity[0],
            split=identity[1],
            classes=classes,
            num_images=sum(shard.num_images for shard in shards),
            shards=shards,
            source=source,
            index_digest=index_digest,
            digest=data_digest(classes, shards, index_digest),
            foreign=foreign,
        )

    @property
    def num_bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.num_bytes for shard in self.shards)

    def counts_text(self) -> str:
        """Images, classes, shards and bytes, for people."""
        return (
            f"{self.num_images:,} images of {len(self.classes):,} classes in "
            f"{len(self.shards):,} shards, {self.num_bytes / 1e6:,.1f} MB"
        )

    def save(self, folder: Path) -> Path:
        """Write `manifest.json` into `folder`, under a temporary name first."""
        path = folder / MANIFEST_FILE
        write_atomically(path, self.as_json())
        return path

    def as_json(self) -> str:
        """The content of `manifest.json`."""
        fields = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of `folder`.

        Raises:
            RefusedInput: The folder holds none, or it is not one that this version can read.
        """
        path = Path(folder) / MANIFEST_FILE
        if not path.is_file():
            raise RefusedInput(_why_not_a_dataset(Path(folder)))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RefusedInput(
                f"{path} cannot be read ({error}); build the dataset anew"
            ) from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, path: str) -> Manifest:
        """Read the content of a `manifest.json`, which lies at `path`; raises like `load`."""
        try:
            fields = json.loads(content)
        except ValueError as error:
            raise RefusedInput(
                f"{path} cannot be read ({error}); build the dataset anew"
            ) from error
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT_NAME:
            raise RefusedInput(
                f"{path} is not a manifest of this program; expected 'format': '{FORMAT_NAME}'"
            )
        version = fields.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise RefusedInput(
                f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; "
                "use the version that wrote it, or build the dataset anew"
            )
        try:
            shards = tuple(ShardEntry(**shard) for shard in fields.pop("shards"))
            return cls(classes=tuple(fields.pop("classes")), shards=shards, **fields)
        except (KeyError, TypeError) as error:
            raise RefusedInput(
                f"{path} lacks a field or has one too many ({error}); build the dataset anew"
            ) from error


def data_digest(classes: tuple[str, ...], shards: tuple[ShardEntry, ...], index_digest: str) -> str:
    """SHA-256 (hex) over classes, shard contents and index content."""
    parts = {
        "classes": list(classes),
        "shards": [[shard.num_images, shard.num_bytes, shard.sha256] for shard in shards],
        "index": index_digest,
    }
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _why_not_a_dataset(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist; give a folder that `python -m data_pipeline.build` wrote"
    if not folder.is_dir():
        return f"{folder} is a file; give the folder that holds {MANIFEST_FILE}"
    return (
        f"{folder} holds no {MANIFEST_FILE}, so it is not a finished dataset; build one with "
        "`python -m data_pipeline.build`, or `python -m data_pipeline.index` for existing shards"
    )
