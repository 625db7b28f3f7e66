"""The folder that a build writes into: never someone else's, never half a dataset.

Shards are written in `OUTPUT/.building/` and moved up when all are there; the manifest comes last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.errors import RefusedInput
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest
from data_pipeline.shard_writer import SkippedFile

BUILDING_FOLDER = ".building"
SKIPPED_FILE = "skipped.jsonl"
_LOCK_FILE = "lock"
_REASONS_SHOWN = 10
_SHARD_NAME = re.compile(r"[\w-]+-\d{6}\.tar")


def finished_build(
    output: Path, source: dict[str, Any], *, in_place: bool = False
) -> Manifest | None:
    """The manifest of the same build if it is already there and its shards are complete.

    With `in_place`, other files in the folder (the shards to be indexed) are welcome.

    Raises:
        RefusedInput: `output` holds something else: another dataset, a damaged one, other files, or
            is a file.
    """
    if output.exists() and not output.is_dir():
        raise RefusedInput(f"--output {output} is a file; give a new or empty folder")
    if not (output / MANIFEST_FILE).exists():
        if output.is_dir() and not in_place:
            _refuse_other_files(output)
        return None
    manifest = Manifest.load(output)
    if manifest.source != source:
        names = sorted({*manifest.source, *source})
        differing = [name for name in names if manifest.source.get(name) != source.get(name)]
        raise RefusedInput(
            f"--output {output} already holds another dataset ({manifest.name}, split "
            f"{manifest.split}, {manifest.num_images} images; what differs: "
            f"{', '.join(differing)}); give another folder, or remove {output / MANIFEST_FILE} "
            "and what belongs to it"
        )
    for shard in manifest.shards:
        path = output / shard.path
        if not path.is_file() or path.stat().st_size != shard.num_bytes:
            raise RefusedInput(
                f"--output {output} holds this dataset, but {path} is missing or has another size; "
                f"remove {output / MANIFEST_FILE} and what belongs to it, then build again"
            )
    return manifest


def write_skipped(output: Path, skipped: Sequence[SkippedFile]) -> None:
    """List the files that did not get in, one JSON object a line; no file if there are none."""
    if skipped:
        lines = [json.dumps(asdict(file), ensure_ascii=False) + "\n" for file in skipped]
        (output / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")


def describe_skipped(output: Path, skipped: Sequence[SkippedFile]) -> list[str]:
    """Lines for people: how many files did not get in, and why."""
    if not skipped:
        return ["  skipped no files"]
    lines = [f"  skipped {len(skipped)} files, listed in {output / SKIPPED_FILE}:"]
    first = {file.reason: file.where for file in reversed(skipped)}
    counts = Counter(file.reason for file in skipped).most_common()
    for reason, count in counts[:_REASONS_SHOWN]:
        lines.append(f"    {count:,} x {reason}; the first: {first[reason]}")
    if len(counts) > _REASONS_SHOWN:
        lines.append(f"    and {len(counts) - _REASONS_SHOWN} more reasons")
    return lines


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Hold the folder for one build; gives the folder in which shards are written.

    What an interrupted build left is removed first, and what this one leaves if it fails.

    Raises:
        RefusedInput: Another process builds here now, or the folder cannot be written.
    """
    staging = output / BUILDING_FOLDER
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = FileLock(staging / _LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout:
        raise RefusedInput(
            f"--output {output}: another build is writing there; wait for it or give another folder"
        ) from None
    except OSError as error:
        raise RefusedInput(f"--output {output} cannot be written: {error}") from error
    try:
        _remove_leftovers(output)
        yield staging
    except OSError as error:
        _remove_leftovers(output)
        raise RefusedInput(f"--output {output} cannot be written: {error}") from error
    except BaseException:
        _remove_leftovers(output)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


def _refuse_other_files(output: Path) -> None:
    names = {entry.name for entry in os.scandir(output)}
    if names and BUILDING_FOLDER not in names:
        example = min(names)
        raise RefusedInput(
            f"--output {output} holds other files (such as {example}); give a new or empty folder"
        )


def _remove_leftovers(output: Path) -> None:
    """Remove what a build that did not finish wrote; the lock is held."""
    if (output / MANIFEST_FILE).exists():
        return
    partial = {INDEX_FILE, f"{INDEX_FILE}.partial", SKIPPED_FILE}
    for path in output.iterdir():
        # The manifest is written as .manifest.json.*.tmp before it gets its name.
        if (
            path.name in partial
            or path.name.startswith(f".{MANIFEST_FILE}.")
            or _SHARD_NAME.fullmatch(path.name)
        ):
            path.unlink()
    for path in (output / BUILDING_FOLDER).iterdir():
        if path.name != _LOCK_FILE:
            path.unlink()
