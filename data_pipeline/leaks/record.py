"""From folders to `leaks.parquet` and a summary for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.leaks.held_out import HeldOutImages, read_held_out
from data_pipeline.leaks.progress import ReadProgress
from data_pipeline.leaks.search import KINDS, Match, Searched, find_leaks
from data_pipeline.leaks.table import LeakTable
from data_pipeline.location import ShardAccess

# A placeholder ("image removed") may equal thousands of test images; the file names this many of
# each test set for a training image, the nearest. The summary counts all.
PAIRS_PER_IMAGE = 20


@dataclass
class LeakSummary:
    """What was found.

    Attributes:
        held_out: the test images.
        best_kind: for each of them the place in `KINDS` of its best copy, or `len(KINDS)`.
        num_images, num_leaking, num_broken, num_plain: training images read, showing a test image,
            unreadable, and too plain for anything but an exact comparison.
        first_broken: which training image is the first unreadable one, and why.
        num_pairs, num_unlisted: pairs in the file, and beyond `PAIRS_PER_IMAGE`.
    """

    held_out: HeldOutImages
    best_kind: NDArray[np.int8] = field(init=False)
    num_images: int = 0
    num_leaking: int = 0
    num_broken: int = 0
    num_plain: int = 0
    num_pairs: int = 0
    num_unlisted: int = 0
    first_broken: str | None = None

    def __post_init__(self) -> None:
        """Begin with no test image found."""
        self.best_kind = np.full(len(self.held_out.row), len(KINDS), dtype=np.int8)

    def add(self, searched: Searched) -> None:
        """Count a chunk."""
        for match in searched.matches:
            kind = KINDS.index(match.kind)
            self.best_kind[match.image] = min(self.best_kind[match.image], kind)
        self.num_images += searched.num_images
        self.num_broken += searched.num_broken
        self.num_plain += searched.num_plain
        self.first_broken = self.first_broken or searched.first_broken
        self.num_leaking += len({match.train_row for match in searched.matches})

    def lines_of_sets(self) -> list[str]:
        """A line for each test set: how many of its images have a copy, of which kind."""
        held_out, lines = self.held_out, []
        for number, dataset in enumerate(held_out.datasets):
            kinds = self.best_kind[held_out.set_number == number]
            counts = np.bincount(kinds, minlength=len(KINDS) + 1)[: len(KINDS)]
            total, found = dataset.num_images, int(counts.sum())
            by_kind = ", ".join(
                f"{count:,} {kind}" for kind, count in zip(KINDS, counts, strict=True)
            )
            lines.append(
                f"{dataset.place}: {found:,} of {total:,} test images have a copy "
                f"({100 * found / total:.2f} %): {by_kind}"
            )
        return lines

    def text(self, output: Path) -> str:
        """The summary for people, several lines."""
        lines = [
            f"{self.num_leaking:,} of {self.num_images:,} training images show a test image; "
            f"{self.num_pairs:,} pairs in {output}",
            *(f"  {line}" for line in self.lines_of_sets()),
        ]
        if self.num_unlisted:
            lines.append(
                f"  {self.num_unlisted:,} more pairs are not listed: the file names at most "
                f"{PAIRS_PER_IMAGE} images of a test set for each training image"
            )
        for what, here, there in (
            ("too plain for anything but an exact comparison", self.num_plain, "num_plain"),
            ("unreadable, so not compared", self.num_broken, "num_broken"),
        ):
            num_test = sum(getattr(self.held_out, there))
            if here or num_test:
                lines.append(f"  {what}: {here:,} training images, {num_test:,} test images")
        broken = [text for text in (self.first_broken, *self.held_out.first_broken) if text]
        if broken:
            lines.append(f"  the first unreadable: {broken[0]}")
            lines.append("  (`python -m data_pipeline.verify DIR --decode` lists them all)")
        return "\n".join(lines)


def open_datasets(
    train: Path | str, tests: Sequence[Path | str], access: ShardAccess | None = None
) -> tuple[ShardedDataset, list[ShardedDataset]]:
    """The dataset that is to be trained on, and those that it must not show.

    Raises:
        RefusedInput: One is no dataset, or a test set is the training set or is named twice.
        ShardUnavailable: A remote one could not be opened.
    """
    opened = open_dataset(train, access)
    datasets = [open_dataset(place, access) for place in tests]
    seen = {opened.digest: f"--train {opened.place}"}
    for dataset in datasets:
        if dataset.digest in seen:
            raise RefusedInput(
                f"--test {dataset.place} holds the same data as {seen[dataset.digest]}; "
                "give each dataset once"
            )
        seen[dataset.digest] = f"--test {dataset.place}"
    return opened, datasets


def record_leaks(
    train: ShardedDataset,
    tests: Sequence[ShardedDataset],
    output: Path,
    *,
    max_distance: float,
    threads: int,
    progress: bool = True,
) -> LeakSummary:
    """Find the leaks and write them to `output`.

    Args:
        train: dataset that is to be trained on.
        tests: datasets that it must not show.
        output: Parquet file to write; see `LEAKS_SCHEMA`.
        max_distance: near and mirrored copies differ by at most this; see `pixel_distances`.
        threads: chunks worked on at a time.
        progress: tell on standard error how far it is.

    Raises:
        RefusedInput: no image of a dataset can be read, or the file cannot be written.
        ShardUnavailable: a remote shard could not be had.
    """
    check_writable(output, "--output")
    num_tests = sum(dataset.num_images for dataset in tests)
    with ReadProgress("test", num_tests, shown=progress) as done:
        held_out = read_held_out(tests, threads=threads, on_images=done.add)
    for number, dataset in enumerate(tests):
        if held_out.num_broken[number] == dataset.num_images:
            raise _nothing_readable("--test", dataset, held_out.first_broken[number])
    summary = LeakSummary(held_out)
    with (
        LeakTable(output, train, held_out, max_distance) as table,
        ReadProgress("train", train.num_images, shown=progress) as done,
    ):
        for searched in find_leaks(train, held_out, max_distance=max_distance, threads=threads):
            summary.add(searched)
            kept = _listed(searched.matches, held_out)
            table.write(kept)
            summary.num_pairs += len(kept)
            summary.num_unlisted += len(searched.matches) - len(kept)
            done.add(searched.num_images, f"{summary.num_leaking:,} leaks")
        if summary.num_broken == summary.num_images:
            raise _nothing_readable("--train", train, summary.first_broken)
    return summary


def check_writable(path: Path, option: str) -> None:
    """Refuse a file that could not be written, before hours of work.

    Raises:
        RefusedInput: its folder is missing or read-only, or it is a folder itself.
    """
    if path.is_dir():
        raise RefusedInput(f"{option} {path} is a folder; name a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RefusedInput(f"{option} {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise RefusedInput(f"{option} {path}: the folder {folder} cannot be written to")


def _nothing_readable(option: str, dataset: ShardedDataset, reason: str | None) -> RefusedInput:
    return RefusedInput(
        f"{option} {dataset.place}: none of its {dataset.num_images} images can be read, so "
        f"nothing can be found; the first: {reason}; "
        f"`python -m data_pipeline.verify {dataset.place} --decode` lists them all"
    )


def _listed(matches: Sequence[Match], held_out: HeldOutImages) -> list[Match]:
    """The nearest `PAIRS_PER_IMAGE` of each training image and test set; matches lie by row."""
    listed: list[Match] = []
    for _, of_row in groupby(matches, key=lambda match: match.train_row):
        room = [PAIRS_PER_IMAGE] * len(held_out.datasets)
        for match in of_row:
            number = held_out.set_number[match.image]
            if room[number] > 0:
                room[number] -= 1
                listed.append(match)
    return listed
