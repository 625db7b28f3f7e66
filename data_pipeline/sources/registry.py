"""The sources that `build` knows by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import RefusedInput
from data_pipeline.sources.cifar import read_cifar10, read_cifar100
from data_pipeline.sources.digits import read_digits
from data_pipeline.sources.flowers102 import read_flowers102
from data_pipeline.sources.fractals import FractalSource
from data_pipeline.sources.image_folder import read_image_folder
from data_pipeline.sources.pets import read_pets
from data_pipeline.sources.source import Source
from data_pipeline.sources.tiny_imagenet import read_tiny_imagenet


@dataclass(frozen=True)
class SourceKind:
    """A reader and what it accepts: `splits` is empty where any name will do."""

    read: Callable[[Path, str], Source]
    splits: tuple[str, ...]
    needs_input: bool = True


SOURCES: dict[str, SourceKind] = {
    "image-folder": SourceKind(read_image_folder, ()),
    "tiny-imagenet": SourceKind(read_tiny_imagenet, ("train", "val")),
    "cifar10": SourceKind(read_cifar10, ("train", "test")),
    "cifar100": SourceKind(read_cifar100, ("train", "test")),
    "flowers102": SourceKind(read_flowers102, ("train", "val", "test")),
    "pets": SourceKind(read_pets, ("trainval", "test")),
    "digits": SourceKind(
        lambda _input, split: read_digits(split), ("train", "test"), needs_input=False
    ),
    "fractals": SourceKind(
        lambda _input, split: FractalSource(split), ("train", "val", "test"), needs_input=False
    ),
}


def open_source(name: str, input_folder: Path | None, split: str) -> Source:
    """List a source's split.

    Raises:
        RefusedInput: Unknown source or split, a missing or needless input folder, or what the
            reader refuses.
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
    return kind.read(Path(input_folder or "."), split)
