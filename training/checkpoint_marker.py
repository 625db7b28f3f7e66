"""What says that a checkpoint is complete: `marker.json`, with size and digest of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from configs.durable_files import flush_to_disk, write_atomically

FORMAT_VERSION = 1
MARKER = "marker.json"
ASIDE = "set-aside-"

_OWN_DIGEST = "sha256"

_DIGEST_THREADS = 8  # hashlib lets go of the interpreter lock while it digests


class FileFacts(TypedDict):
    """What a marker says of a file."""

    bytes: int
    sha256: str


class DamagedCheckpoint(Exception):
    """A folder does not count as a checkpoint; the message says which file and why."""


def look_into(store_folder: Path) -> list[tuple[Path, dict[str, Any] | DamagedCheckpoint]]:
    """Every folder of a checkpoint or save, oldest first: its marker, or what is wrong with it."""
    found: list[tuple[Path, dict[str, Any] | DamagedCheckpoint]] = []
    for folder in sorted(store_folder.glob("*step-*"), key=lambda path: (step_of(path), path)):
        try:
            found.append((folder, verify_checkpoint(folder)))
        except DamagedCheckpoint as damage:
            found.append((folder, damage))
    return found


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check a checkpoint folder against its marker: names, sizes, then digests.

    Returns:
        The marker.

    Raises:
        DamagedCheckpoint: Something is missing or differs.
    """
    marker = _read_marker(folder)
    for name, facts in marker["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedCheckpoint(
                f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
            )
    for name, digest in _digests(folder, list(marker["files"])).items():
        if digest != marker["files"][name]["sha256"]:
            raise DamagedCheckpoint(f"{name} has changed since it was saved (its digest differs)")
    return marker


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if marker["format_version"] != FORMAT_VERSION:
            raise DamagedCheckpoint(
                f"{MARKER} has format version {marker['format_version']}, "
                f"this program reads {FORMAT_VERSION}"
            )
        if marker["step"] != step_of(folder):
            raise DamagedCheckpoint(f"{MARKER} is that of step {marker['step']}")
        _ = marker["files"], marker["metadata"]
        # A marker from before they had a digest of their own is taken as it is.
        if _OWN_DIGEST in marker and marker[_OWN_DIGEST] != _own_digest(marker):
            raise DamagedCheckpoint(f"{MARKER} has changed since it was saved (its digest differs)")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"it has no {MARKER}, so its save did not end") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{MARKER} cannot be read ({error!r})") from error
    return marker


def flushed(path: Path) -> FileFacts:
    """Flush a written file to disk and say what a marker must know of it."""
    flush_to_disk(path)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def flush_all(folder: Path) -> dict[str, FileFacts]:
    """`flushed` of every file in the folder, by its path relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        flush_to_disk(inner)
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        return dict(zip(names, pool.map(flushed, paths), strict=True))


def write_marker(
    folder: Path, step: int, metadata: dict[str, Any], facts: Mapping[str, FileFacts]
) -> None:
    """Write the list of files, and flush the folder's names."""
    flush_to_disk(folder)
    marker = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {name: facts[name] for name in sorted(facts)},
        "metadata": metadata,
    }
    marker[_OWN_DIGEST] = _own_digest(marker)
    write_atomically(folder / MARKER, json.dumps(marker, indent=1) + "\n")
    flush_to_disk(folder)


def _own_digest(marker: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all that a marker says but for this."""
    said = {key: value for key, value in marker.items() if key != _OWN_DIGEST}
    # As it will be read: the keys of JSON are text.
    said = json.loads(json.dumps(said))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_of(folder: Path) -> int:
    """Step in a folder's name; -1 for a name that is not one of ours."""
    number = folder.name.removeprefix(ASIDE).removeprefix("step-")
    return int(number) if number.isdigit() else -1
