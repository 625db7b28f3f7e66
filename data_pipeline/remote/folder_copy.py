"""Opens a dataset by its URL: manifest and index come here, the shards stay.

    CACHE/datasets/DIGEST/manifest.json, index.parquet     DIGEST: of the manifest's bytes

Named by content, so that a dataset that changes on its server never mixes with its older self.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs.durable_files import flush_to_disk
from configs.errors import RefusedInput
from data_pipeline.index_table import index_digest, read_index, recorded_digest
from data_pipeline.location import ShardAccess, shown
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest
from data_pipeline.remote.faults import ShardUnavailable
from data_pipeline.remote.node_lock import Patience, last_write, only_process
from data_pipeline.remote.retries import FIRM_ATTEMPTS
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import FileSink, Transfers

_PARTIAL_PREFIX = "incoming-"
# Folders of this process alone, without data.cache_dir; they are removed when it ends.
_private_folders: list[tempfile.TemporaryDirectory[str]] = []


def local_copy(url: str, access: ShardAccess) -> Path:
    """A folder that holds manifest and index of the dataset at a URL.

    The manifest is fetched each time; an index that the cache holds, once only.

    Raises:
        ShardUnavailable: One of them could not be fetched, or the index has wrong bytes.
        RefusedInput: It is no manifest, or the folder cannot be written.
    """
    closing = threading.Event()
    transfers = Transfers(access, RemoteStatistics(), closing)
    text = _manifest_text(url, transfers)
    folder = _root(access) / "datasets" / hashlib.sha256(text).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_process(
            folder / "lock",
            Patience(access.retry_seconds + access.stall_seconds, closing),
            f"{shown(url)}/{INDEX_FILE}",
            lambda: last_write(folder.glob(f"{_PARTIAL_PREFIX}*/{INDEX_FILE}")),
        ):
            _complete(folder, url, text, transfers)
    except OSError as error:
        raise RefusedInput(
            f"data.cache_dir: {folder} cannot be written: {error}; give another folder"
        ) from error
    return folder


def _manifest_text(url: str, transfers: Transfers) -> bytes:
    location = f"{url}/{MANIFEST_FILE}"
    for _ in range(FIRM_ATTEMPTS):
        text = bytes(transfers.read_all(location))
        try:
            json.loads(text)
            return text
        except ValueError as error:
            problem = error
    raise ShardUnavailable(
        f"{shown(location)} is not JSON after {FIRM_ATTEMPTS} attempts: {problem}; upload the "
        "dataset again"
    )


def _root(access: ShardAccess) -> Path:
    if access.cache_dir is not None:
        return access.cache_dir
    _private_folders.append(tempfile.TemporaryDirectory(prefix="vitrain-"))
    return Path(_private_folders[-1].name)


def _complete(folder: Path, url: str, text: bytes, transfers: Transfers) -> None:
    """Put manifest and index into the folder, whose lock is held, unless they are there."""
    for leftover in folder.glob(f"{_PARTIAL_PREFIX}*"):
        shutil.rmtree(leftover)
    partial = folder / f"{_PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        if not (folder / MANIFEST_FILE).exists():
            (partial / MANIFEST_FILE).write_bytes(text)
            os.replace(partial / MANIFEST_FILE, folder / MANIFEST_FILE)
        expected = _manifest(folder, url).index_digest
        if not _has_index(folder, expected):
            _fetch_index(partial, f"{url}/{INDEX_FILE}", expected, transfers)
            os.replace(partial / INDEX_FILE, folder / INDEX_FILE)
            flush_to_disk(folder)
    finally:
        shutil.rmtree(partial)


def _manifest(folder: Path, url: str) -> Manifest:
    try:
        return Manifest.load(folder)
    except RefusedInput as error:
        raise RefusedInput(f"{shown(url)}: {error}") from error


def _has_index(folder: Path, expected_digest: str) -> bool:
    """Whether the index is here and whole: a file that was cut short has no footer."""
    try:
        return recorded_digest(pq.read_schema(folder / INDEX_FILE).empty_table()) == expected_digest
    except (OSError, pa.ArrowException):
        return False


def _fetch_index(partial: Path, location: str, expected_digest: str, transfers: Transfers) -> None:
    path = partial / INDEX_FILE
    problem = ""
    for _ in range(FIRM_ATTEMPTS):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            transfers.copy(location, FileSink(descriptor, str(path)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            if index_digest(read_index(partial)) == expected_digest:
                return
            problem = "its content has another digest than manifest.json says"
        except RefusedInput as error:
            problem = str(error)
    raise ShardUnavailable(
        f"{shown(location)} has wrong bytes after {FIRM_ATTEMPTS} attempts: {problem}; upload the "
        "dataset again"
    )
