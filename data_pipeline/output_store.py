"""Where a build writes: a local folder, or a URL below which fsspec writes objects.

A file is there completely or not at all, in both: locally it is renamed when it is complete, and an
object store shows an upload once it is committed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from filelock import FileLock

from configs.durable_files import flush_to_disk
from configs.errors import RefusedInput

_PARTIAL = ".partial"
_COPIED_AT_ONCE_BYTES = 1 << 20


class OutputStore(Protocol):
    """A folder of files, named by their path in it; small, and sent between processes.

    All methods raise OSError where the store cannot be read or written.
    """

    @property
    def where(self) -> str:
        """The folder, for messages."""

    @contextmanager
    def create(self, name: str, *, durable: bool = False) -> Iterator[IO[bytes]]:
        """A file to write; it replaces `name` when the block ends, unless by an exception.

        If `durable`, it also survives a power cut.
        """

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a small file; if `durable`, so that it also survives a power cut.

        Other than `create`, threads may do this at the same time.
        """

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """What lies in a folder: names (without `folder`) and sizes in bytes; {} if it is not."""

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if there is none."""

    def is_intact(self, name: str, num_bytes: int, sha256: str) -> bool:
        """Whether a file is there as it was written."""

    def move(self, names: Sequence[tuple[str, str]]) -> None:
        """Give files, named first, other names; files that have those are replaced."""

    def take(self, path: Path, name: str) -> None:
        """Give a file on disk this name here; it is gone from where it was."""

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""

    def scratch_folder(self) -> Path | None:
        """A folder on disk for files that this process alone uses; None: the system's own."""

    @contextmanager
    def lock(self, name: str, timeout_seconds: float) -> Iterator[None]:
        """Hold a lock of this name, where the store has locks; filelock.Timeout if it is held."""


def open_store(output: Path | str) -> OutputStore:
    """The store that `--output` names: a folder, or a URL such as s3://bucket/shards.

    Raises:
        RefusedInput: It is a file, or a URL that cannot be written.
    """
    if str(output).startswith("file://"):
        output = Path(str(output).removeprefix("file://"))
    if "://" in str(output):
        from data_pipeline.remote_store import open_remote_store

        return open_remote_store(str(output))
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise RefusedInput(f"--output {folder} is a file; give a new or empty folder")
    return LocalStore(folder)


@dataclass(frozen=True)
class LocalStore:
    """A folder on disk. Several hosts may write to it if it lies on a shared file system."""

    root: Path

    @property
    def where(self) -> str:
        """Path of the folder."""
        return str(self.root)

    @contextmanager
    def create(self, name: str, *, durable: bool = False) -> Iterator[IO[bytes]]:
        """A file under a temporary name, which no other process uses; renamed at the end."""
        path = self.root / name
        temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{_PARTIAL}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Buffered, because a raw write takes less than it is given as a disk fills up.
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a small file; if `durable`, the disk has it before its name changes."""
        with self.create(name, durable=durable) as file:
            file.write(data)
        if durable:
            flush_to_disk((self.root / name).parent)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.root / name).read_bytes()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Files and folders in a folder, partial files and lock files among them."""
        try:
            names = os.listdir(self.root / folder)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RefusedInput(
                f"--output {self.root} cannot be read: {error.strerror}; give a new or empty folder"
            ) from error
        found = {name: self.size(f"{folder}/{name}" if folder else name) for name in names}
        # Another part of the build may have renamed its file meanwhile.
        return {name: size for name, size in found.items() if size is not None}

    def size(self, name: str) -> int | None:
        """Size of a file."""
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def is_intact(self, name: str, num_bytes: int, sha256: str) -> bool:
        """Whether a file is there with this digest; reads all of it."""
        if self.size(name) != num_bytes:
            return False
        with open(self.root / name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def move(self, names: Sequence[tuple[str, str]]) -> None:
        """Rename files within the folder."""
        for name, target in names:
            os.replace(self.root / name, self.root / target)

    def take(self, path: Path, name: str) -> None:
        """Rename a file; one of another file system is copied."""
        try:
            os.replace(path, self.root / name)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with open(path, "rb") as source, self.create(name) as file:
            shutil.copyfileobj(source, file, _COPIED_AT_ONCE_BYTES)
        path.unlink()

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all its files."""
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def scratch_folder(self) -> Path | None:
        """The folder itself: where shards fit, there is room; temporary folders may be memory."""
        return self.root

    @contextmanager
    def lock(self, name: str, timeout_seconds: float) -> Iterator[None]:
        """Hold a lock file; it goes with its process, however that ends."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=timeout_seconds):
            yield
