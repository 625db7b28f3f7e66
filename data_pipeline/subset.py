"""Subsets: which images of a dataset a run uses, and under which classes. Filters on the index.

`training_images` applies all options of `SubsetConfig`; `class_images` those that say what the
classes are, which a validation or test set needs too. No tar is read or rewritten.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.dataset import ShardedDataset
from data_pipeline.exclusion import excluded_rows
from data_pipeline.label_map import read_label_map
from data_pipeline.order import IntArray, stable_permutation

_SHOWN_NAMES, _LISTED_CLASSES = 3, 20


@dataclass(frozen=True)
class _Classes:
    """The classes of a run. `numbers[c]` is the new number of class `c`, or -1: left out."""

    names: tuple[str, ...]
    numbers: IntArray


def training_images(
    dataset: ShardedDataset,
    options: SubsetConfig,
    *,
    seed: int,
    candidates: IntArray | None = None,
) -> ShardedDataset:
    """The images that `options` choose to train on.

    Which images `fraction` and `images_per_class` take is a function of `subset_seed` (else
    `seed`), the class and the source's order: not of how the shards were shuffled, of `exclude` or
    of which other classes are in. A smaller amount is contained in a larger one.

    Args:
        dataset: A whole dataset.
        options: The filters.
        seed: Of the run.
        candidates: Ascending rows of `dataset` to choose from; None means all.

    Raises:
        RefusedInput: No image is left, an unknown class, or a file that cannot be used.
    """
    if candidates is None:
        candidates = np.arange(dataset.num_images)
    rows = candidates
    if options.exclude is not None:
        rows = np.setdiff1d(rows, excluded_rows(dataset, options.exclude), assume_unique=True)
        _refuse_nothing(dataset, rows, f"data.exclude = {options.exclude} names them all")
    classes = _classes_of(dataset, options)
    rows = _rows_of_classes(dataset, rows, classes, options)
    if options.fraction is not None or options.images_per_class is not None:
        chosen_by = seed if options.subset_seed is None else options.subset_seed
        ranks = _ranks_within_class(dataset, candidates, chosen_by)
        labels = classes.numbers[dataset.label[rows]]
        rows = rows[_first_of_each_class(labels, ranks[rows], options)]
    return _with_classes(dataset.select(rows), classes)


def few_of_each_class(dataset: ShardedDataset, images_per_class: int, seed: int) -> IntArray:
    """Ascending rows of that many images of each class, as `images_per_class` chooses them."""
    ranks = _ranks_within_class(dataset, np.arange(dataset.num_images), seed)
    return np.flatnonzero(ranks < images_per_class)


def class_images(dataset: ShardedDataset, options: SubsetConfig) -> ShardedDataset:
    """All images of the classes that `options` name, as a validation or test set needs them.

    Raises:
        RefusedInput: No image is left, an unknown class, or a file that cannot be used.
    """
    classes = _classes_of(dataset, options)
    rows = _rows_of_classes(dataset, np.arange(dataset.num_images), classes, options)
    return _with_classes(dataset.select(rows), classes)


def choice_told(whole: ShardedDataset, chosen: ShardedDataset) -> str | None:
    """How much a choice leaves of a dataset, as a sentence; None if it is all."""
    if chosen.filter_digest == whole.filter_digest:
        return None
    return (
        f"{whole.place}: using {chosen.num_images:,} of {whole.num_images:,} images; "
        f"{chosen.num_classes:,} classes (the data has {whole.num_classes:,})"
    )


def shortage_told(chosen: ShardedDataset, images_per_class: int | None) -> str | None:
    """Which classes have fewer images than were asked for, as a sentence; None if none has."""
    counts = chosen.images_per_class()
    if images_per_class is None or counts.min() >= images_per_class:
        return None
    return (
        f"{int((counts < images_per_class).sum())} classes have fewer than images_per_class = "
        f"{images_per_class} images: all of theirs are used"
    )


def add_subset_options(parser: argparse.ArgumentParser) -> None:
    """Add the filters of `SubsetConfig` to a command that looks at a dataset."""
    add = parser.add_argument_group(
        "subset", "what a run with the same data.* options would train on; see docs/data.md"
    ).add_argument
    add("--label-map", type=Path, metavar="FILE", help="YAML or JSON of `class: new class` lines")
    add("--classes", nargs="+", metavar="NAME", help="names, first words of names, or @FILE")
    add("--fraction", type=float, metavar="F", help="share of each class's images")
    add("--images-per-class", type=int, metavar="N", help="images of each class")
    add("--exclude", type=Path, metavar="FILE", help="list of images to leave out (Parquet)")


def subset_of(dataset: ShardedDataset, arguments: argparse.Namespace, seed: int) -> ShardedDataset:
    """The images that options added by `add_subset_options` choose.

    Raises:
        RefusedInput: An option is out of bounds, or as for `training_images`.
    """
    names = ("label_map", "classes", "fraction", "images_per_class", "exclude")
    try:
        options = SubsetConfig.model_validate({name: getattr(arguments, name) for name in names})
    except ValidationError as error:
        first = error.errors()[0]
        told = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # two options that exclude each other
            raise RefusedInput(told.replace("data.", "--").replace("_", "-")) from None
        name = str(first["loc"][0]).replace("_", "-")
        raise RefusedInput(f"--{name} {first['input']}: {told[0].lower()}{told[1:]}") from None
    return training_images(dataset, options, seed=seed)


def _classes_of(dataset: ShardedDataset, options: SubsetConfig) -> _Classes:
    dataset.require_single_labels(options)
    classes = _Classes(dataset.classes, np.arange(dataset.num_classes))
    if options.label_map is not None:
        classes = _mapped(dataset, options.label_map)
    if options.classes is None:
        return classes
    wanted = _numbers_of_names(options.classes, classes.names, dataset.place)
    new_number = np.full(len(classes.names) + 1, -1)  # the last one for what was left out before
    new_number[wanted] = np.arange(len(wanted))
    names = tuple(classes.names[number] for number in wanted)
    return _Classes(names, new_number[classes.numbers])


def _mapped(dataset: ShardedDataset, path: Path) -> _Classes:
    new_names = read_label_map(path, "data.label_map =")
    known = _ClassNames(dataset.classes)
    olds = [known.find(name) for name in new_names]
    _refuse_unknown(
        [name for name, old in zip(new_names, olds, strict=True) if old is None],
        dataset.classes,
        f"data.label_map = {path}",
        dataset.place,
    )
    names = tuple(sorted(set(new_names.values())))
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.full(dataset.num_classes, -1)
    for old, new in zip(olds, new_names.values(), strict=True):
        numbers[old] = number_of[new]
    return _Classes(names, numbers)


class _ClassNames:
    """Finds a class by its name, or by the name's first word where only one class has it."""

    def __init__(self, names: Sequence[str]) -> None:
        """Note the first word of every name, and None for those that several share."""
        words: dict[str, int | None] = {}
        for number, name in enumerate(names):
            word = name.split(" ", 1)[0]
            words[word] = None if word in words else number
        self._numbers = {**words, **{name: number for number, name in enumerate(names)}}

    def find(self, name: str) -> int | None:
        """Number of the class, or None."""
        return self._numbers.get(name)


def _numbers_of_names(wanted: Sequence[str], names: tuple[str, ...], place: str) -> list[int]:
    """Numbers of the wanted classes, ascending, so that the order of asking does not matter."""
    listed = [line for name in wanted for line in _names_in(name)]
    known = _ClassNames(names)
    found = {name: known.find(name) for name in listed}
    unknown = [name for name, number in found.items() if number is None]
    _refuse_unknown(unknown, names, "data.classes", place)
    return sorted({number for number in found.values() if number is not None})


def _names_in(name: str) -> list[str]:
    """The name itself, or for @FILE the names in the file."""
    if not name.startswith("@"):
        return [name]
    try:
        lines = Path(name[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedInput(
            f"data.classes = {name} cannot be read: {error}; give a text file with a class a line"
        ) from error
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise RefusedInput(f"data.classes = {name}: the file names no class; give one a line")


def _refuse_unknown(unknown: Sequence[str], names: tuple[str, ...], where: str, place: str) -> None:
    if not unknown:
        return
    told = []
    for name in unknown[:_SHOWN_NAMES]:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        told.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    more = f" and {len(unknown) - _SHOWN_NAMES} more" if len(unknown) > _SHOWN_NAMES else ""
    remedy = f"`python -m data_pipeline.show {place} --all-classes` lists its classes"
    if len(names) <= _LISTED_CLASSES:
        remedy = f"there are {', '.join(map(repr, names))}"
    raise RefusedInput(f"{where}: {place} has no class {', '.join(told)}{more}; {remedy}")


def _rows_of_classes(
    dataset: ShardedDataset, rows: IntArray, classes: _Classes, options: SubsetConfig
) -> IntArray:
    rows = rows[classes.numbers[dataset.label[rows]] >= 0]
    named = {
        "data.label_map": options.label_map,
        "data.classes": " ".join((options.classes or ())[:_SHOWN_NAMES]) or None,
    }
    told = " and ".join(f"{name} = {value}" for name, value in named.items() if value is not None)
    _refuse_nothing(dataset, rows, f"none is of the classes that {told} leaves")
    return rows


def _refuse_nothing(dataset: ShardedDataset, rows: IntArray, why: str) -> None:
    if rows.size == 0:
        raise RefusedInput(
            f"{dataset.place}: no image is left of {dataset.num_images}: {why}; choose more"
        )


def _with_classes(dataset: ShardedDataset, classes: _Classes) -> ShardedDataset:
    return dataset.relabel(classes.names, classes.numbers)


def _ranks_within_class(dataset: ShardedDataset, rows: IntArray, seed: int) -> NDArray:
    """For each of `rows` its place in the shuffled line of its class; -1 for other rows."""
    ranks = np.full(dataset.num_images, -1)
    by_class = rows[np.lexsort((dataset.source_row[rows], dataset.label[rows]))]
    labels, starts = np.unique(dataset.label[by_class], return_index=True)
    for label, members in zip(labels.tolist(), np.split(by_class, starts[1:]), strict=True):
        permutation = stable_permutation(len(members), "images-per-class", seed, label)
        ranks[members[permutation]] = np.arange(len(members))
    return ranks


def _first_of_each_class(labels: IntArray, ranks: IntArray, options: SubsetConfig) -> IntArray:
    """Places in `labels`, ascending, of the images with the lowest ranks of each class."""
    by_class = np.lexsort((ranks, labels))
    counts = np.bincount(labels)
    if options.fraction is not None:
        limits = np.maximum(1, np.floor(options.fraction * counts + 0.5)).astype(np.int64)
    else:
        limits = np.full(len(counts), options.images_per_class)
    first = np.cumsum(counts) - counts
    sorted_labels = labels[by_class]
    place_in_class = np.arange(len(labels)) - first[sorted_labels]
    return np.sort(by_class[place_in_class < limits[sorted_labels]])
