"""The folder that a build writes into: never someone else's, never half a dataset.

Shards are written in `OUTPUT/.building/` and moved up when all are there; the manifest comes last.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.errors import RefusedInput
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest

BUILDING_FOLDER = ".building"
SKIPPED_FILE = "skipped.jsonl"
_LOCK_FILE = "lock"
_SHARD_NAME = re.compile(r"[\w-]+-\d{6}\.tar")


def finished_build(output: Path, source: dict[str, Any]) -> Manifest | None:
    """The manifest of the same build if it is already there and its shards are complete.

    Raises:
        RefusedInput: `output` holds something else: another dataset, a damaged one, other files, or
            is a file.
    """
    if output.exists() and not output.is_dir():
        raise RefusedInput(f"--output {output} is a file; give a new or empty folder")
    if not (output / MANIFEST_FILE).exists():
        if output.is_dir():
            _refuse_other_files(output)
        return None
    manifest = Manifest.load(output)
    if manifest.source != source:
        names = sorted({*manifest.source, *source})
        differing = [name for name in names if manifest.source.get(name) != source.get(name)]
        raise RefusedInput(
            f"--output {output} already holds another dataset ({manifest.name}, split "
            f"{manifest.split}, {manifest.num_images} images; what differs: "
            f"{', '.join(differing)}); give another folder or remove this one"
        )
    for shard in manifest.shards:
        path = output / shard.path
        if not path.is_file() or path.stat().st_size != shard.num_bytes:
            raise RefusedInput(
                f"--output {output} holds this dataset, but {path} is missing or has another size; "
                "remove the folder and build again"
            )
    return manifest


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
    partial = {INDEX_FILE, f"{INDEX_FILE}.partial", f"{MANIFEST_FILE}.partial", SKIPPED_FILE}
    for path in output.iterdir():
        if path.name in partial or _SHARD_NAME.fullmatch(path.name):
            path.unlink()
    for path in (output / BUILDING_FOLDER).iterdir():
        if path.name != _LOCK_FILE:
            path.unlink()
