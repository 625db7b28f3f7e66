"""The end of a build: shards get their names, then come index, skipped files and manifest.

Whether one process wrote the shards, or many over several starts and machines, the result is the
same: it depends on their records alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from configs.errors import RefusedInput
from data_pipeline.joined_index import joining
from data_pipeline.manifest import MANIFEST_FILE, Manifest, ShardEntry
from data_pipeline.output_folder import BuildDescription, discard_unfinished, write_skipped
from data_pipeline.output_store import LocalStore, OutputStore
from data_pipeline.shard_record import (
    ShardRecord,
    SkippedFile,
    WrittenShard,
    count_records,
    staged_tar,
)
from data_pipeline.sources.read_ahead import read_ahead

_NUMBERS_SHOWN = 5
_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class FinishedBuild:
    """A dataset that is complete, and what became of the source's files.

    `changes` counts images by what was done to their bytes ("converted", "shrunk", "broken" and
    kept); `num_duplicates` are images that equal an earlier one to the byte.
    """

    manifest: Manifest
    skipped: tuple[SkippedFile, ...]
    changes: Counter[str]
    num_duplicates: int


def join_shards(store: OutputStore, description: BuildDescription) -> FinishedBuild:
    """Make a dataset of shards that all have their records.

    Raises:
        RefusedInput: A shard is missing, or not one file could be used.
        OSError: The store cannot be written.
    """
    with joining(store) as joined:
        joined.gather(_records(store, description))
        skipped = tuple(file for shard in joined.shards for file in shard.skipped)
        filled = [shard for shard in joined.shards if shard.num_images]
        if not filled:
            raise _nothing_to_join(store, description, skipped)
        entries = _name_shards(store, description.split, filled)
        index_digest = joined.save(store)
        duplicates = joined.count_duplicates()
    write_skipped(store, skipped)
    manifest = Manifest.describe(
        identity=(description.name, description.split),
        classes=description.classes,
        shards=entries,
        source=description.facts,
        index_digest=index_digest,
    )
    store.write(MANIFEST_FILE, manifest.as_json().encode())
    discard_unfinished(store)
    changes: Counter[str] = Counter()
    for shard in filled:
        changes.update(shard.changes)
    return FinishedBuild(manifest, skipped, changes, duplicates)


def names_already_given(store: OutputStore, description: BuildDescription) -> dict[int, str]:
    """Final names by shard of the plan, if an earlier start came so far that it gave names."""
    if count_records(store) < description.num_shards:
        return {}
    filled = [r.shard.number for r in _records(store, description) if r.shard.num_images]
    return {number: _name(description.split, place) for place, number in enumerate(filled)}


def _records(store: OutputStore, description: BuildDescription) -> Iterator[ShardRecord]:
    """The records of all shards, in the order of the plan.

    Raises:
        RefusedInput: When all were asked for, some of which are missing.
    """
    numbers = range(description.num_shards)
    missing: list[str] = []
    # From an object store, each takes as long as a request, so several are asked for at a time.
    num_threads = 1 if isinstance(store, LocalStore) else _REQUESTS_AT_ONCE
    for number, record in zip(
        numbers, read_ahead(partial(ShardRecord.load, store), numbers, num_threads), strict=True
    ):
        if record is None:
            missing.append(str(number))
        elif not missing:
            yield record
    if missing:
        more = ", ..." if len(missing) > _NUMBERS_SHOWN else ""
        raise RefusedInput(
            f"{store.where}: {len(missing)} of {description.num_shards} shards are not written yet "
            f"(numbers {', '.join(missing[:_NUMBERS_SHOWN])}{more}); start their parts again, or "
            "build without --part, which writes just these"
        )


def _nothing_to_join(
    store: OutputStore, description: BuildDescription, skipped: Sequence[SkippedFile]
) -> RefusedInput:
    discard_unfinished(store)
    first = f"{skipped[0].where}: {skipped[0].reason}" if skipped else "there is none"
    return RefusedInput(
        f"none of the {len(skipped)} files of {description.name}, split {description.split}, "
        f"can be used; the first is {first}"
    )


def _name_shards(
    store: OutputStore, split: str, shards: Sequence[WrittenShard]
) -> tuple[ShardEntry, ...]:
    """Move the shards to their names; numbers close up over shards that stayed empty."""
    staged, named = store.sizes(staged_tar(0).rpartition("/")[0]), store.sizes()
    entries, moves = [], []
    for number, shard in enumerate(shards):
        name, tar = _name(split, number), staged_tar(shard.number)
        size = staged.get(tar.rpartition("/")[2])
        if size == shard.num_bytes:
            moves.append((tar, name))
        elif size is not None or named.get(name) != shard.num_bytes:  # moved by an earlier start
            raise RefusedInput(
                f"{store.where}: {tar} is missing or has another size than it was written with; "
                "run the build again, which writes it anew"
            )
        entries.append(ShardEntry(name, shard.num_images, shard.num_bytes, shard.sha256))
    store.move(moves)
    return tuple(entries)


def _name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"
