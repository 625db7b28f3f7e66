"""Manifest and index for WebDataset shards that were written elsewhere; no tar is changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.foreign_labels import KEY_FIELD, RawLabel, label_map_digest, save_label_map
from data_pipeline.foreign_places import ShardPlace, find_shards, shard_sizes
from data_pipeline.foreign_shards import ForeignShard, read_shard, with_mapped_labels
from data_pipeline.index_table import INDEX_SCHEMA, write_index
from data_pipeline.label_map import read_label_map
from data_pipeline.location import is_url
from data_pipeline.manifest import MANIFEST_FILE, Manifest, ShardEntry
from data_pipeline.output_folder import describe_skipped, finished_build, write_skipped
from data_pipeline.shard_record import SkippedFile
from data_pipeline.worker_processes import num_usable_cores, run_jobs


@dataclass(frozen=True)
class IndexOptions:
    """How foreign shards are understood.

    `label_field` is the field of `.json` members that holds the label (or `.EXTENSION`, `__key__`:
    see `foreign_labels`), `label_map` a file that says what labels become, `classes` a text file
    with a class a line or a folder with a manifest, `workers` the number of processes (None: one a
    core).
    """

    name: str
    split: str
    label_field: str = "label"
    label_map: Path | None = None
    classes: Path | None = None
    workers: int | None = None


@dataclass(frozen=True)
class IndexSummary:
    """What indexing did."""

    output: Path
    manifest: Manifest
    skipped: tuple[SkippedFile, ...]
    already_built: bool

    def text(self) -> str:
        """The summary for people, several lines."""
        manifest = self.manifest
        what = manifest.counts_text()
        if self.already_built:
            return f"{self.output} already holds the index of these shards: {what}"
        lines = [
            f"indexed {what}",
            f"  {manifest.name}, split {manifest.split}, in {self.output}",
            f"  data digest {manifest.digest}",
        ]
        if any(is_url(shard.path) or Path(shard.path).is_absolute() for shard in manifest.shards):
            lines.append("  its shards lie elsewhere: reading them takes --data.absolute-shards")
        return "\n".join([*lines, *describe_skipped(self.output, self.skipped)])


def index_shards(pattern: str, output: Path, options: IndexOptions) -> IndexSummary:
    """Write manifest and index for the shards that `pattern` names into `output`.

    Shards below `output` are named relative to it, so that the folder can be moved; others by their
    absolute path or URL.

    Raises:
        RefusedInput: Anything that a user can correct.
    """
    if options.workers is not None and options.workers < 1:
        raise RefusedInput(f"--workers {options.workers}: give at least 1")
    given = None if options.classes is None else read_class_names(options.classes)
    label_map = _label_map(options)
    places = find_shards(pattern)
    facts = _describe(places, output, options, given)
    if label_map is not None:
        facts["label_map"] = label_map_digest(label_map)  # not null: older manifests lack the key
    manifest = finished_build(output, facts, in_place=True)
    if manifest is not None:
        return IndexSummary(output, manifest, (), already_built=True)
    shards = _read_shards(places, options)
    if label_map is not None:
        shards = [with_mapped_labels(shard, label_map) for shard in shards]
    skipped = tuple(file for shard in shards for file in shard.skipped)
    shards = [shard for shard in shards if shard.labels]
    _refuse_nothing(shards, skipped, pattern)
    numbers = class_numbers({label for shard in shards for label in shard.labels}, given)
    try:
        output.mkdir(parents=True, exist_ok=True)
        index_digest = write_index(output, _joined_table(shards, numbers))
        write_skipped(output, skipped)
        if label_map is not None:
            save_label_map(output, label_map)
        manifest = Manifest.describe(
            identity=(options.name, options.split),
            classes=class_names(numbers, given),
            shards=tuple(_entry(shard, output) for shard in shards),
            source=facts,
            index_digest=index_digest,
            foreign=True,
        )
        manifest.save(output)
    except OSError as error:
        raise RefusedInput(f"--output {output} cannot be written: {error}") from error
    return IndexSummary(output, manifest, skipped, already_built=False)


def _refuse_nothing(
    shards: list[ForeignShard], skipped: tuple[SkippedFile, ...], pattern: str
) -> None:
    if not shards:
        why = (
            f"the first is {skipped[0].where}: {skipped[0].reason}" if skipped else "they are empty"
        )
        raise RefusedInput(f"--shards {pattern}: no sample can be used; {why}")


def class_numbers(labels: set[RawLabel], given: Sequence[str] | None) -> dict[RawLabel, int]:
    """Number of every label that occurs, given the names of the classes if they are known.

    Without names, numbers stay and names are numbered in sorted order.

    Raises:
        RefusedInput: Numbers and names are mixed, or a label is not among the classes.
    """
    names = {label for label in labels if isinstance(label, str)}
    numbers = {label for label in labels if isinstance(label, int)}
    if names and numbers:
        raise RefusedInput(
            f"labels are numbers in some samples ({min(numbers)}) and names in others "
            f"({min(names)!r}); index them apart"
        )
    if numbers and (min(numbers) < 0 or (given is not None and max(numbers) >= len(given))):
        wrong = min(numbers) if min(numbers) < 0 else max(numbers)
        last = "" if given is None else str(len(given) - 1)
        raise RefusedInput(f"label {wrong} is not a class number 0..{last}")
    if numbers:
        return {number: number for number in numbers}
    order = {name: number for number, name in enumerate(given or sorted(names))}
    unknown = sorted(names - set(order))
    if unknown:
        raise RefusedInput(f"label {unknown[0]!r} ({len(unknown)} such) is not in --classes")
    return {name: order[name] for name in names}


def class_names(numbers: dict[RawLabel, int], given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of all classes in the order of their numbers; the number itself where none is known."""
    if given is not None:
        return tuple(given)
    if any(isinstance(label, str) for label in numbers):
        return tuple(sorted(str(label) for label in numbers))
    return tuple(str(number) for number in range(max(numbers.values()) + 1))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, or from another dataset's manifest.

    Raises:
        RefusedInput: It cannot be read, is empty or names a class twice.
    """
    if path.is_dir():
        return Manifest.load(path).classes
    try:
        names = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line)
    except (OSError, ValueError) as error:
        raise RefusedInput(
            f"--classes {path} is neither a text file with a class a line nor a folder with "
            f"{MANIFEST_FILE}: {error}"
        ) from error
    if not names or len(set(names)) != len(names):
        raise RefusedInput(f"--classes {path}: give every class once, one a line")
    return names


def _label_map(options: IndexOptions) -> dict[str, str] | None:
    if options.label_map is not None:
        return read_label_map(options.label_map, "--label-map")
    if options.label_field == KEY_FIELD:
        raise RefusedInput(
            f"--label-field {KEY_FIELD}: keys are no classes; give with --label-map the file that "
            "says which class each is of"
        )
    return None


def _describe(
    places: list[ShardPlace], output: Path, options: IndexOptions, given: Sequence[str] | None
) -> dict[str, Any]:
    sizes = zip(places, shard_sizes(places), strict=True)
    listing = "\n".join(f"{_named(place, output)} {size}" for place, size in sizes)
    return {
        "kind": "foreign",
        "name": options.name,
        "split": options.split,
        "fingerprint": hashlib.sha256(listing.encode()).hexdigest(),
        "label_field": options.label_field,
        "classes": None if given is None else hashlib.sha256("\n".join(given).encode()).hexdigest(),
    }


def _read_shards(places: list[ShardPlace], options: IndexOptions) -> list[ForeignShard]:
    from tqdm import tqdm

    num_workers = min(options.workers or num_usable_cores(), len(places))
    read = partial(read_shard, label_field=options.label_field)
    found = {}
    with tqdm(total=len(places), unit=" shards", disable=None) as bar:
        for shard in run_jobs(read, places, num_workers, preload=("webdataset", "PIL.Image")):
            found[shard.place] = shard
            bar.update()
    return [found[place] for place in places]


def _joined_table(shards: list[ForeignShard], numbers: dict[RawLabel, int]) -> pa.Table:
    """The index of all shards: their tables with `shard`, `label` and `source_row` filled in."""
    counts = [len(shard.labels) for shard in shards]
    columns: dict[str, NDArray] = {
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        "label": np.array([numbers[label] for shard in shards for label in shard.labels], np.int64),
        "source_row": np.arange(sum(counts), dtype=np.int64),
    }
    table = pa.concat_tables([shard.table for shard in shards]).combine_chunks()
    arrays = [
        pa.array(columns[field.name]) if field.name in columns else table[field.name]
        for field in INDEX_SCHEMA
    ]
    return pa.table(arrays, schema=INDEX_SCHEMA)


def _entry(shard: ForeignShard, output: Path) -> ShardEntry:
    name = _named(shard.place, output)
    return ShardEntry(name, len(shard.labels), shard.num_bytes, shard.sha256)


def _named(place: ShardPlace, output: Path) -> str:
    """How the manifest in `output` names a shard."""
    if isinstance(place, str):
        return place
    folder = Path(os.path.abspath(output))
    return str(place.relative_to(folder) if place.is_relative_to(folder) else place)
