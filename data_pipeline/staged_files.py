"""Files of a dataset that are replaced together, so that a crash leaves the old or the new ones.

New files are written into `FOLDER/.repair/`. A marker, written when all of them are on the disk,
decides: without it they are thrown away, with it they are moved to their places, by whoever comes
next if need be.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.durable_files import flush_to_disk, write_atomically
from configs.errors import RefusedInput

STAGING_FOLDER = ".repair"
_MARKER = "ready.json"
_LOCK = "lock"


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Hold the dataset for one repair; gives the empty folder for new files.

    What an interrupted repair left is finished first, or thrown away if it was not complete.

    Raises:
        RefusedInput: Another process repairs it now, or it cannot be written.
    """
    staged = folder / STAGING_FOLDER
    try:
        staged.mkdir(exist_ok=True)
        lock = FileLock(staged / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise RefusedInput(f"{folder}: another repair is at work there; wait for it") from None
    except OSError as error:
        raise RefusedInput(f"{folder} cannot be written: {error}") from error
    try:
        finish(folder)
        _clear(staged)
        yield staged
    except OSError as error:
        raise RefusedInput(f"{folder} cannot be repaired: {error}") from error
    finally:
        if not (staged / _MARKER).exists():
            shutil.rmtree(staged, ignore_errors=True)
        lock.release()


def commit(folder: Path, replaced: Mapping[str, str], removed: Sequence[str]) -> None:
    """Put staged files into their places and remove others.

    Args:
        folder: the dataset.
        replaced: name in the folder of every staged file's name, in the order of replacement.
        removed: names of files that go away last.

    Raises:
        OSError: The disk does not take it; if the marker is there, `staging` goes on with it.
    """
    staged = folder / STAGING_FOLDER
    for name in replaced:
        flush_to_disk(staged / name)
    plan = {"replaced": dict(replaced), "removed": list(removed)}
    write_atomically(staged / _MARKER, json.dumps(plan, indent=1) + "\n")
    flush_to_disk(staged)
    finish(folder)


def finish(folder: Path) -> None:
    """Move what is ready into its place; does nothing without a marker, and may be repeated.

    Raises:
        OSError: The disk does not take it.
        RefusedInput: The marker is not one of ours.
    """
    staged = folder / STAGING_FOLDER
    if not (staged / _MARKER).exists():
        return
    plan = _read_plan(staged / _MARKER)
    for name, target in plan["replaced"].items():
        if (staged / name).exists():  # else it has been moved before a crash
            os.replace(staged / name, folder / target)
    for name in plan["removed"]:
        (folder / name).unlink(missing_ok=True)
    flush_to_disk(folder)
    (staged / _MARKER).unlink()


def _read_plan(marker: Path) -> dict[str, Any]:
    """What is to be moved and removed; never outside the folder, which may have been downloaded."""
    try:
        plan = json.loads(marker.read_text(encoding="utf-8"))
        names = [*plan["replaced"], *plan["replaced"].values(), *plan["removed"]]
        is_ours = all(is_plain_name(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_ours = False
    if not is_ours:
        raise RefusedInput(f"{marker} was not written by a repair; remove it if you know why")
    return plan


def is_plain_name(name: str) -> bool:
    """Whether a name can only be that of a visible file in the folder itself."""
    return Path(name).name == name and not name.startswith(".")


def is_interrupted(folder: Path) -> bool:
    """Whether a repair was interrupted while it was moving files."""
    return (folder / STAGING_FOLDER / _MARKER).exists()


def _clear(staged: Path) -> None:
    for path in staged.iterdir():
        if path.name != _LOCK:
            path.unlink()
