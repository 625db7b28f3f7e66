"""`python -m data_pipeline.verify`: are the shards what the manifest and the index say?

Exit code 0: sound; 1: damaged, with the list of everything that is wrong; 2: not a dataset.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from configs.data_groups import LoaderConfig
from configs.errors import RefusedInput
from data_pipeline.dataset import ShardedDataset
from data_pipeline.foreign_labels import (
    Unlabelled,
    load_label_map,
    mapped_label,
    read_label,
)
from data_pipeline.index_table import disagreements, index_digest, read_index
from data_pipeline.label_sets import LabelSet
from data_pipeline.location import Origin, ShardAccess
from data_pipeline.manifest import Manifest, file_sha256
from data_pipeline.tar_samples import DamagedTar, MemberPlace, TarSample, read_samples
from data_pipeline.worker_processes import num_usable_cores

EXIT_SOUND = 0
EXIT_DAMAGED = 1
LabelMap = Mapping[str, str] | None


@dataclass(frozen=True)
class Verification:
    """What was found: nothing in `problems` means sound."""

    manifest: Manifest
    problems: tuple[str, ...]
    was_decoded: bool

    def text(self) -> str:
        """The result for people: one line, or one more for every problem."""
        if self.problems:
            number = len(self.problems)
            heading = f"damaged: {number} problem{'s' if number > 1 else ''}"
            return "\n".join([heading, *(f"  {problem}" for problem in self.problems)])
        decoded = "; every image decodes" if self.was_decoded else ""
        return f"sound: {self.manifest.counts_text()}; digests, counts and index agree{decoded}"


def verify_dataset(
    folder: Path, *, decode: bool = False, workers: int | None = None
) -> Verification:
    """Check digests and counts of all shards and the index against the tars.

    Args:
        folder: the dataset.
        decode: decode every image too.
        workers: shards checked at a time, in threads; None means one per core.

    Raises:
        RefusedInput: `folder` is not a dataset.
    """
    manifest = Manifest.load(folder)
    try:
        table = read_index(folder)
    except RefusedInput as error:
        return Verification(manifest, (str(error),), decode)
    problems = disagreements(manifest, table)
    if index_digest(table) != manifest.index_digest:
        problems.append("the content of index.parquet does not have the digest in manifest.json")
    # Whoever verifies wants to know of every shard, wherever it lies; no image is shown.
    origin = Origin(access=ShardAccess(absolute_shards=True))
    dataset = ShardedDataset(folder, manifest, table, origin=origin)
    # Not in order if the index is damaged; then too every row belongs to the shard that it names.
    rows = np.argsort(dataset.shard, kind="stable")
    edges = np.searchsorted(dataset.shard[rows], np.arange(len(manifest.shards) + 1)).tolist()
    parts = [rows[start:stop] for start, stop in pairwise(edges)]
    try:
        label_map = load_label_map(folder, manifest)
    except RefusedInput as error:
        return Verification(manifest, (*problems, str(error)), decode)
    check = partial(_check_shard, dataset, label_map, decode=decode)
    with (
        ThreadPoolExecutor(workers or num_usable_cores()) as threads,
        tqdm(total=manifest.num_images, unit=" images", disable=None) as bar,
    ):
        for part, found in zip(parts, threads.map(check, count(), parts), strict=False):
            problems += found
            bar.update(len(part))
    return Verification(manifest, tuple(problems), decode)


def _check_shard(
    dataset: ShardedDataset,
    label_map: LabelMap,
    number: int,
    rows: NDArray[np.int64],
    *,
    decode: bool,
) -> list[str]:
    """What is wrong with one shard, given the rows of the index that name it."""
    entry = dataset.manifest.shards[number]
    path = dataset.shard_path(number)
    if not path.is_file():
        return [f"{entry.path}: the file is missing"]
    found = []
    num_bytes = path.stat().st_size
    if num_bytes != entry.num_bytes:
        found.append(f"{entry.path}: {num_bytes} bytes, manifest.json says {entry.num_bytes}")
    elif file_sha256(path) != entry.sha256:
        found.append(f"{entry.path}: its SHA-256 is not the one in manifest.json")
    with open(path, "rb") as file:
        problems = _compare(dataset, label_map, path, file, rows)
        found += [f"{entry.path}: {problem}" for problem in problems]
        if decode:
            found += [f"{entry.path}: {problem}" for problem in _undecodable(dataset, file, rows)]
    return found


def _compare(
    dataset: ShardedDataset,
    label_map: LabelMap,
    path: Path,
    file: IO[bytes],
    rows: NDArray[np.int64],
) -> Iterator[str]:
    """Differences between the tar's samples and the rows of the index."""
    at_offset = {int(dataset.offset[row]): int(row) for row in rows}
    try:
        for sample in read_samples(path):
            images = [place for place in sample.images() if place.offset in at_offset]
            if images:
                row = at_offset.pop(images[0].offset)
                yield from _compare_sample(dataset, label_map, sample, images[0], row, file)
            elif not dataset.manifest.foreign:  # there, unusable samples are left out of the index
                yield f"{sample.key} is in the tar but not in the index, or not at its offset"
    except DamagedTar as error:
        yield f"{error}; {len(at_offset)} of its {len(rows)} images were not reached"
        return
    for row in at_offset.values():
        yield f"{dataset.key(row)} is in the index but not in the tar at its offset"


def _compare_sample(
    dataset: ShardedDataset,
    label_map: LabelMap,
    sample: TarSample,
    image: MemberPlace,
    row: int,
    file: IO[bytes],
) -> Iterator[str]:
    in_index = (dataset.key(row), dataset.extension(row), int(dataset.size[row]))
    in_tar = (sample.key, image.extension, image.size)
    if in_index != in_tar:
        yield f"(key, extension, size) are {in_tar} in the tar, {in_index} in the index"
    if dataset.is_multi_label:
        yield from _compare_label_set(dataset, sample, row, file)
        return
    try:
        written = read_label(sample, file, dataset.manifest.source.get("label_field", "label"))
        label = mapped_label(written, label_map)
    except Unlabelled as error:
        yield f"{sample.key}: {error}"
        return
    expected = int(dataset.label[row])
    if label not in (expected, dataset.classes[expected]):
        yield f"{sample.key}: label {label!r} in the tar, {expected} in the index"


def _compare_label_set(
    dataset: ShardedDataset, sample: TarSample, row: int, file: IO[bytes]
) -> Iterator[str]:
    if "cls.json" not in sample.members:
        yield f"{sample.key}: no .cls.json beside the image"
        return
    try:
        in_tar = LabelSet.from_json(sample.members["cls.json"].read(file))
    except ValueError as error:
        yield f"{sample.key}: its .cls.json cannot be read: {error}"
        return
    if in_tar != dataset.label_sets.of_row(row):
        yield f"{sample.key}: its .cls.json has other labels than the index"


def _undecodable(
    dataset: ShardedDataset, file: IO[bytes], rows: NDArray[np.int64]
) -> Iterator[str]:
    from data_pipeline.broken import BrokenImage
    from data_pipeline.decode import decode_image

    for row in rows.tolist():
        file.seek(int(dataset.offset[row]))
        try:
            decode_image(
                file.read(int(dataset.size[row])), max_pixels=LoaderConfig().max_image_pixels
            )
        except BrokenImage as error:
            yield f"{dataset.key(row)}.{dataset.extension(row)} does not decode: {error}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.verify",
        description="Check digests, counts and the index of a dataset against its shards.",
        epilog="Exit code 0: sound; 1: damaged; 2: not a dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("dir", type=Path, help="folder with manifest.json and index.parquet")
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="shards at a time (default: one per core)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Verify and print the result."""
    options = _parse(argv)
    if options.workers is not None and options.workers < 1:
        raise RefusedInput(f"--workers {options.workers}: give at least 1")
    result = verify_dataset(options.dir, decode=options.decode, workers=options.workers)
    print(result.text())  # noqa: T201
    return EXIT_DAMAGED if result.problems else EXIT_SOUND


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
