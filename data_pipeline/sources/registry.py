"""The sources that `build` knows by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.errors import RefusedInput
from data_pipeline.location import redacted
from data_pipeline.sources.cifar import read_cifar10, read_cifar100
from data_pipeline.sources.digits import read_digits
from data_pipeline.sources.flowers102 import read_flowers102
from data_pipeline.sources.fractals import FractalSource
from data_pipeline.sources.image_folder import read_image_folder
from data_pipeline.sources.imagenet1k import read_imagenet1k
from data_pipeline.sources.imagenet21k import read_imagenet21k
from data_pipeline.sources.open_images import read_open_images
from data_pipeline.sources.parquet_files import read_parquet
from data_pipeline.sources.pets import read_pets
from data_pipeline.sources.source import Source
from data_pipeline.sources.stream_source import StreamSource
from data_pipeline.sources.tiny_imagenet import read_tiny_imagenet


@dataclass(frozen=True)
class SourceKind:
    """A reader and what it accepts: `splits` is empty where any name will do.

    `options` are keywords of the reader, options of the command line; `reads_urls` is for readers
    that take a URL in place of a folder.
    """

    read: Callable[..., Source | StreamSource]
    splits: tuple[str, ...]
    needs_input: bool = True
    options: tuple[str, ...] = ()
    reads_urls: bool = False


SOURCES: dict[str, SourceKind] = {
    "image-folder": SourceKind(read_image_folder, (), reads_urls=True),
    "tiny-imagenet": SourceKind(read_tiny_imagenet, ("train", "val")),
    "cifar10": SourceKind(read_cifar10, ("train", "test")),
    "cifar100": SourceKind(read_cifar100, ("train", "test")),
    "flowers102": SourceKind(read_flowers102, ("train", "val", "test")),
    "pets": SourceKind(read_pets, ("trainval", "test")),
    "imagenet-1k": SourceKind(read_imagenet1k, ("train", "val")),
    "imagenet-21k": SourceKind(read_imagenet21k, ("train",), options=("classes",), reads_urls=True),
    "open-images": SourceKind(
        read_open_images,
        ("train", "validation", "test"),
        options=("classes", "machine_confidence"),
        reads_urls=True,
    ),
    "parquet": SourceKind(
        read_parquet, (), options=("image_column", "label_column"), reads_urls=True
    ),
    "digits": SourceKind(
        lambda _input, split: read_digits(split), ("train", "test"), needs_input=False
    ),
    "fractals": SourceKind(
        lambda _input, split: FractalSource(split), ("train", "val", "test"), needs_input=False
    ),
}

READER_OPTIONS = tuple(sorted({name for kind in SOURCES.values() for name in kind.options}))
"""Every option that some reader takes."""


def open_source(
    name: str, input_folder: Path | str | None, split: str, **options: Any
) -> Source | StreamSource:
    """List a source's split, or open it if it can only be read as a stream.

    `options` are those of its `SourceKind`; None is as good as none.

    Raises:
        RefusedInput: Unknown source or split, a missing or needless input folder, an option of
            another source, or what the reader refuses.
    """
    kind = SOURCES.get(name)
    if kind is None:
        raise RefusedInput(f"--source {name}: choose one of {', '.join(SOURCES)}")
    if kind.splits and split not in kind.splits:
        raise RefusedInput(f"--split {split}: {name} has the splits {', '.join(kind.splits)}")
    if not kind.splits and (not split or not split.replace("-", "").replace("_", "").isalnum()):
        raise RefusedInput(f"--split {split!r}: give a name of letters, digits, - and _")
    if kind.needs_input and input_folder is None:
        raise RefusedInput(f"--source {name} reads files: give their folder with --input")
    if not kind.needs_input and input_folder is not None:
        raise RefusedInput(f"--source {name} needs no files: leave out --input {input_folder}")
    given = {name: value for name, value in options.items() if value is not None}
    for option in given:
        if option not in kind.options:
            takers = [taker for taker, other in SOURCES.items() if option in other.options]
            raise RefusedInput(
                f"--{option.replace('_', '-')} {given[option]} goes only with --source "
                f"{' or '.join(takers)}, not {name}"
            )
    return kind.read(_place(kind, input_folder), split, **given)


def _place(kind: SourceKind, input_folder: Path | str | None) -> Path | str:
    if "://" not in str(input_folder):
        return Path(input_folder or ".")
    if not kind.reads_urls:
        readers = [reader for reader, other in SOURCES.items() if other.reads_urls]
        raise RefusedInput(
            f"--input {input_folder}: only {', '.join(readers)} are read from URLs; "
            "download the files and give their folder"
        )
    parts = urlsplit(str(input_folder))
    if "@" in parts.netloc or parts.query or "::" in str(input_folder):
        raise RefusedInput(
            f"--input {redacted(str(input_folder))}: give a plain URL; a user, password or query "
            "would end up in skipped.jsonl, so credentials belong into the environment, ~/.netrc "
            "or the client's own files"
        )
    return str(input_folder)
