"""The folder that a build writes into: never someone else's, never half a dataset.

Shards are written in `OUTPUT/.building/`, each with a record, and get their names when all are
there; the manifest comes last. A build that was interrupted is gone on with from its records, and
one of a stream from what grows in `OUTPUT/.building/stream/`, or `stream-I-of-N/` of a part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from configs.errors import RefusedInput
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest
from data_pipeline.output_store import OutputStore, open_store
from data_pipeline.shard_record import BUILDING_FOLDER, SkippedFile, count_records
from data_pipeline.stream_journal import PROGRESS_FILE

SKIPPED_FILE = "skipped.jsonl"
_DESCRIPTION_FILE = f"{BUILDING_FOLDER}/build.json"
_LOCK = f"{BUILDING_FOLDER}/lock"
_STREAM_FOLDER = "stream"
_BEGIN_SECONDS = 30
_REASONS_SHOWN = 10
_SHARD_NAME = re.compile(r"[\w-]+-\d{6}\.tar")
_HALF_WRITTEN = re.compile(
    "|".join(re.escape(name) + r"\..*partial" for name in (INDEX_FILE, MANIFEST_FILE, SKIPPED_FILE))
)
_STAGED = re.compile(r"(\d{6})\.(?:tar|arrow)\..*partial")


@dataclass(frozen=True)
class BuildDescription:
    """What is being built, for whoever goes on with it: `.building/build.json`.

    `facts` decide the bytes and become the manifest's `source`.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    facts: dict[str, Any]
    num_shards: int

    def save(self, store: OutputStore) -> None:
        """Write it; raises OSError."""
        store.write(_DESCRIPTION_FILE, json.dumps(asdict(self), ensure_ascii=False).encode())

    def digest(self, store: OutputStore) -> str:
        """A name (hex) for this build into this store, for what lies outside of it."""
        text = f"{store.where}\n{json.dumps(asdict(self), sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, store: OutputStore) -> BuildDescription | None:
        """Read it; None if no build is under way, or a version that wrote it otherwise began it."""
        try:
            fields = json.loads(store.read(_DESCRIPTION_FILE))
            return cls(**{**fields, "classes": tuple(fields["classes"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Part:
    """A share of the shards, `number` of `count`, from 1: those for one job of an array."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "3/8".

        Raises:
            RefusedInput: It says nothing such.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise RefusedInput(f"--part {text}: give I/N with I from 1 to N, such as 3/8")
        return cls(int(found[1]), int(found[2]))

    def holds(self, shard_number: int) -> bool:
        """Whether a shard of the plan belongs to this part."""
        return shard_number % self.count == self.number - 1

    def belongs(self) -> str:
        """What the names of its own files end in."""
        return f"-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        """The part as it is given: 3/8."""
        return f"{self.number}/{self.count}"


def finished_build(
    output: Path | str, source: dict[str, Any], *, in_place: bool = False
) -> Manifest | None:
    """The manifest of the same build if it is already there and its shards are complete.

    With `in_place`, other files in the folder (the shards to be indexed) are welcome.

    Raises:
        RefusedInput: `output` holds something else: another dataset, a damaged one, other files, or
            is a file.
    """
    store = open_store(output)
    sizes = store.sizes()
    if MANIFEST_FILE not in sizes:
        if sizes and not in_place and BUILDING_FOLDER not in sizes:
            raise RefusedInput(
                f"--output {output} holds other files (such as {min(sizes)}); give a new or empty "
                "folder"
            )
        return None
    manifest = Manifest.parse(store.read(MANIFEST_FILE), f"{output}/{MANIFEST_FILE}")
    if manifest.source != source:
        raise RefusedInput(
            f"--output {output} already holds another dataset ({manifest.name}, split "
            f"{manifest.split}, {manifest.num_images} images; what differs: "
            f"{_differences(manifest.source, source)}); give another folder, or remove "
            f"{MANIFEST_FILE} there and what belongs to it"
        )
    for shard in manifest.shards:
        if "://" in shard.path:
            continue  # a foreign shard: its size is part of what was compared
        size = sizes[shard.path] if shard.path in sizes else store.size(shard.path)
        if size != shard.num_bytes:
            raise RefusedInput(
                f"--output {output} holds this dataset, but {shard.path} is missing or has another "
                f"size; remove {MANIFEST_FILE} there and what belongs to it, then build again"
            )
    return manifest


def write_skipped(store: OutputStore | Path, skipped: Sequence[SkippedFile]) -> None:
    """List the files that did not get in, one JSON object a line; no file if there are none."""
    if skipped:
        lines = [json.dumps(asdict(file), ensure_ascii=False) + "\n" for file in skipped]
        store = open_store(store) if isinstance(store, Path) else store
        store.write(SKIPPED_FILE, "".join(lines).encode())


def describe_skipped(output: Path | str, skipped: Sequence[SkippedFile]) -> list[str]:
    """Lines for people: how many files did not get in, and why."""
    if not skipped:
        return ["  skipped no files"]
    lines = [f"  skipped {len(skipped)} files, listed in {output}/{SKIPPED_FILE}:"]
    first = {file.reason: file.where for file in reversed(skipped)}
    counts = Counter(file.reason for file in skipped).most_common()
    for reason, count in counts[:_REASONS_SHOWN]:
        lines.append(f"    {count:,} x {reason}; the first: {first[reason]}")
    if len(counts) > _REASONS_SHOWN:
        lines.append(f"    and {len(counts) - _REASONS_SHOWN} more reasons")
    return lines


@contextmanager
def building(
    output: Path | str, description: BuildDescription | None, part: Part | None = None
) -> Iterator[OutputStore]:
    """Hold the folder for one build, or one part of it; gives the store to write to.

    What an earlier start finished is kept, here too if this one fails; what it left half is
    removed. Without a `description` only what is there can be joined.

    Raises:
        RefusedInput: Another process builds here now, an unfinished build of something else is
            there, or the folder cannot be written.
    """
    store = open_store(output)
    try:
        with _locked(store, part):
            # Parts begin one after the other, and none while the whole is built or joined.
            with nullcontext() if part is None else store.lock(_LOCK, _BEGIN_SECONDS):
                if description is not None:
                    _begin(store, description, part)
                    if part is None:
                        _take_over(store)
                _sweep(store, part)
            try:
                yield store
            except BaseException:
                # Other parts may have begun; a whole build without a finished shard leaves nothing.
                if part is None and not _has_begun(store):
                    discard_unfinished(store)
                raise
    except Timeout:
        raise RefusedInput(
            f"--output {output}: another build is writing there; wait for it or give another folder"
        ) from None
    except OSError as error:
        raise RefusedInput(
            f"--output {output} cannot be written: {error}; shards that are finished stay there, "
            "and the same command goes on behind them"
        ) from error


def stream_folder(part: Part | None) -> str:
    """Where the unfinished shards of a stream grow, in the output folder."""
    return f"{BUILDING_FOLDER}/{_STREAM_FOLDER}{'' if part is None else part.belongs()}"


def discard_unfinished(store: OutputStore) -> None:
    """Remove all that a build needs until it is finished; raises OSError."""
    store.remove(BUILDING_FOLDER)


@contextmanager
def _locked(store: OutputStore, part: Part | None) -> Iterator[None]:
    """Exclude other builds here; of parts, only the same one. Locks go with their process."""
    own = _LOCK if part is None else f"{_LOCK}{part.belongs()}"
    with ExitStack() as held:
        held.enter_context(store.lock(own, 0))
        if part is None:
            parts = (name for name in store.sizes(BUILDING_FOLDER) if name.startswith("lock-"))
            for name in sorted(parts):
                held.enter_context(store.lock(f"{BUILDING_FOLDER}/{name}", 0))
        yield


def _begin(store: OutputStore, description: BuildDescription, part: Part | None) -> None:
    """Go on with the build that is described there, or begin anew where nothing is finished."""
    there = BuildDescription.load(store)
    if there == description:
        return
    # Another part may be at its first shards still, so a part never begins over a description.
    signs = (there is not None, _has_begun(store))
    if all(signs) or (part is not None and any(signs)):
        raise RefusedInput(_why_not_to_go_on(store, there, description))
    if part is None:
        for name in store.sizes():
            if name in (INDEX_FILE, SKIPPED_FILE) or _is_left_over(name):
                store.remove(name)
        for name in store.sizes(BUILDING_FOLDER):
            if not name.startswith("lock"):
                store.remove(f"{BUILDING_FOLDER}/{name}")
    description.save(store)


def _has_begun(store: OutputStore) -> bool:
    """Whether there is something that a build can go on from."""
    names = [name for name in store.sizes(BUILDING_FOLDER) if name.startswith(_STREAM_FOLDER)]
    is_read = any(store.size(f"{BUILDING_FOLDER}/{name}/{PROGRESS_FILE}") for name in names)
    return is_read or count_records(store) > 0


def _why_not_to_go_on(
    store: OutputStore, there: BuildDescription | None, wanted: BuildDescription
) -> str:
    remove = f"remove {store.where}/{BUILDING_FOLDER}"
    if there is None:
        return f"--output {store.where} holds shards of a build that left no description; {remove}"
    facts = [{**asdict(one), **one.facts} for one in (there, wanted)]
    return (
        f"--output {store.where} holds an unfinished build of something else ({there.name}, split "
        f"{there.split}; what differs: {_differences(*facts)}); finish that one with the command "
        f"that began it, or {remove}"
    )


def _sweep(store: OutputStore, part: Part | None) -> None:
    """Remove what killed processes left half-written of what this one is about to write."""
    if part is None:
        for name in store.sizes():
            if _HALF_WRITTEN.fullmatch(name):
                store.remove(name)
    for name in store.sizes(BUILDING_FOLDER):
        found = _STAGED.fullmatch(name)
        if found and (part is None or part.holds(int(found[1]))):
            store.remove(f"{BUILDING_FOLDER}/{name}")


def _take_over(store: OutputStore) -> None:
    """Remove what parts of a stream left unfinished: a build without parts writes it itself."""
    for name in store.sizes(BUILDING_FOLDER):
        if name.startswith(f"{_STREAM_FOLDER}-"):
            store.remove(f"{BUILDING_FOLDER}/{name}")


def _is_left_over(name: str) -> bool:
    # The index and the manifest are written under temporary names, which end in .partial or .tmp.
    is_partial = name.startswith((INDEX_FILE, MANIFEST_FILE, f".{MANIFEST_FILE}."))
    return is_partial or _SHARD_NAME.fullmatch(name) is not None


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    names = sorted({*one, *other} - {"facts"})
    return ", ".join(name for name in names if one.get(name) != other.get(name))
