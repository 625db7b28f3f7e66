"""Large indexes are memory-mapped: `index.arrow`, written once, shared by all ranks of a node.

An index of 14 million images takes a gigabyte and seconds to unpack from parquet, in each process.
As an uncompressed Arrow file it opens at once, costs each process only the pages it touches, and
those are the same memory for all of a node. The file can be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from data_pipeline.index_table import disagreements, read_index
from data_pipeline.manifest import INDEX_FILE, Manifest

CACHE_FILE = "index.arrow"
# Below this, parquet is read in well under a second and a second file is not worth having.
CACHED_FROM_IMAGES = 1_000_000
_LONGEST_WAIT_SECONDS = 600.0
_MADE_FROM = b"vitrain.made_from"


def open_index(folder: Path, manifest: Manifest) -> pa.Table:
    """The index of `folder`: memory-mapped if it is large, else read into memory.

    The first opening of a large index writes the file, beside it or, where that folder is
    read-only, in the user's cache folder; other processes wait for it.

    Raises:
        RefusedInput: as `read_index`.
    """
    if manifest.num_images < CACHED_FROM_IMAGES or not (folder / INDEX_FILE).is_file():
        return read_index(folder)
    made_from = _made_from(folder / INDEX_FILE, manifest)
    for place in (folder / CACHE_FILE, _private_file(folder)):
        table = _mapped(place, made_from)
        if table is None:
            table = _written(place, folder, manifest, made_from)
        if table is not None:
            return table
    return read_index(folder)


def was_checked(table: pa.Table) -> bool:
    """Whether the rows were found to belong to the manifest when the mapped file was written."""
    return _MADE_FROM in (table.schema.metadata or {})


def _made_from(path: Path, manifest: Manifest) -> bytes:
    """What must be unchanged for the file to be used: the dataset, and the very parquet file."""
    status = path.stat()
    return f"{manifest.digest} {status.st_size} {status.st_mtime_ns}".encode()


def _private_file(folder: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(home) / "vitrain" / f"index-{name}.arrow"


def _mapped(place: Path, made_from: bytes) -> pa.Table | None:
    """The table of a finished file that was made from this index, else None."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
        table.validate()
    except (OSError, pa.ArrowException):  # none, or cut short by a full disk
        return None
    return table if (table.schema.metadata or {}).get(_MADE_FROM) == made_from else None


def _written(place: Path, folder: Path, manifest: Manifest, made_from: bytes) -> pa.Table | None:
    """Write the file and map it; None where nothing can be written.

    An index that does not belong to its manifest is given back as it was read, and not kept.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock"), timeout=_LONGEST_WAIT_SECONDS):
            # Whoever waited for the lock finds the file that the holder wrote.
            table = _mapped(place, made_from)
            if table is None:
                table = read_index(folder)
                if disagreements(manifest, table):
                    return table
                _write(place, table, made_from)
                table = _mapped(place, made_from)
    except (OSError, NotImplementedError):  # read-only, full, or without locks
        return None
    return table


def _write(place: Path, table: pa.Table, made_from: bytes) -> None:
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _MADE_FROM: made_from})
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as file:
            # One batch, so that every column is one piece of memory.
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=table.num_rows)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
