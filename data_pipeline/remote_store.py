"""A build's output below a URL, through fsspec: s3://, gs:// and whatever else fsspec can write.

There are no locks: two builds of the same thing at one URL write the same bytes, which is wasteful
and harmless; one of something else is refused by the description that the first left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from configs.errors import RefusedInput

# An object store has no rename: a copy on the server takes about as long as a request each.
_COPIES_AT_ONCE = 32
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google"}
_USER_INFO = re.compile(r"://[^/@]+@")


def open_remote_store(url: str) -> RemoteStore:
    """The store below a URL.

    Raises:
        RefusedInput: fsspec cannot write there, or what it needs for that is not installed.
    """
    if "::" in url or "?" in url or _USER_INFO.search(url):
        shown = _USER_INFO.sub("://***@", url).partition("?")[0]
        raise RefusedInput(
            f"--output {shown}: give a plain URL such as s3://bucket/shards; credentials belong "
            "into the environment or the client's own files"
        )
    if url.startswith(("http://", "https://")):
        raise RefusedInput(
            f"--output {url}: a web server can be read, not written; give a folder, s3:// or gs://"
        )
    store = RemoteStore(url.rstrip("/"))
    store.open_files()
    return store


@dataclass(frozen=True)
class RemoteStore:
    """Objects below a URL; `url` has no slash at its end."""

    url: str

    @property
    def where(self) -> str:
        """The URL."""
        return self.url

    @contextmanager
    def create(self, name: str, *, durable: bool = False) -> Iterator[IO[bytes]]:  # noqa: ARG002
        """An object that is uploaded in parts while it is written, and committed at the end."""
        files, root = self.open_files()
        with (
            _as_os_errors(f"{self.url}/{name}"),
            files.transaction,
            files.open(f"{root}/{name}", "wb") as file,
        ):
            yield file

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002
        """Replace a small object with one request."""
        files, root = self.open_files()
        with _as_os_errors(f"{self.url}/{name}"):
            files.pipe_file(f"{root}/{name}", bytes(data))

    def read(self, name: str) -> bytes:
        """The content of an object."""
        files, root = self.open_files()
        with _as_os_errors(f"{self.url}/{name}"):
            return bytes(files.cat_file(f"{root}/{name}"))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Objects and prefixes below a prefix."""
        files, root = self.open_files()
        path = f"{root}/{folder}".rstrip("/")
        with _as_os_errors(f"{self.url}/{folder}"):
            files.invalidate_cache()  # other processes write there too
            try:
                entries = files.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        names = {entry["name"].strip("/"): entry["size"] or 0 for entry in entries}
        return {
            name.rpartition("/")[2]: size for name, size in names.items() if name != path.strip("/")
        }

    def size(self, name: str) -> int | None:
        """Size of an object."""
        folder, _, last = name.rpartition("/")
        return self.sizes(folder).get(last)

    def is_intact(self, name: str, num_bytes: int, sha256: str) -> bool:  # noqa: ARG002
        """Whether an object of this size is there: an upload is whole or not there at all."""
        files, root = self.open_files()
        with _as_os_errors(f"{self.url}/{name}"), suppress(FileNotFoundError):
            files.invalidate_cache()
            return bool(files.info(f"{root}/{name}")["size"] == num_bytes)
        return False

    def move(self, names: Sequence[tuple[str, str]]) -> None:
        """Copy objects within the store, many at a time, then remove the first ones."""

        def move_one(pair: tuple[str, str]) -> None:
            files, root = self.open_files()
            with _as_os_errors(f"{self.url}/{pair[0]}"):
                files.cp_file(f"{root}/{pair[0]}", f"{root}/{pair[1]}")
                files.rm_file(f"{root}/{pair[0]}")

        with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
            list(threads.map(move_one, names))

    def take(self, path: Path, name: str) -> None:
        """Upload a file, in parts if it is large, and remove it."""
        files, root = self.open_files()
        with _as_os_errors(f"{self.url}/{name}"):
            files.put_file(str(path), f"{root}/{name}")
        path.unlink()

    def remove(self, name: str) -> None:
        """Remove an object, or all below a prefix."""
        files, root = self.open_files()
        with _as_os_errors(f"{self.url}/{name}"), suppress(FileNotFoundError):
            files.invalidate_cache()
            files.rm(f"{root}/{name}", recursive=True)

    def scratch_folder(self) -> Path | None:
        """None: the system's temporary folder."""
        return None

    @contextmanager
    def lock(self, name: str, timeout_seconds: float) -> Iterator[None]:  # noqa: ARG002
        """Object stores have no locks that go with their process."""
        yield

    def open_files(self) -> tuple[Any, str]:
        """The file system, which fsspec keeps per process, and the path that the URL is in it.

        Raises:
            RefusedInput: fsspec does not know the URL's scheme, or lacks a package for it.
        """
        from fsspec.core import url_to_fs

        try:
            files, path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise RefusedInput(f"{self.url} cannot be opened: {error}") from error
        return files, path.rstrip("/")


@contextmanager
def _as_os_errors(what: str) -> Iterator[None]:
    """Turn what clients of object stores raise into OSError, with the URL."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
            raise OSError(f"{what}: {type(error).__name__}: {error}") from error
        raise
