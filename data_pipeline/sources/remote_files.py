"""Image files below a URL (s3://, gs://, http(s)://, ...), listed and read through fsspec."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.sources.source import FileSource

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.5
# What a repeat does not change: these count as files that cannot be read, and are left out.
_FIRM = (FileNotFoundError, PermissionError, IsADirectoryError)


class SourceUnavailable(RefusedInput):
    """A remote file could not be had, though it was asked for several times."""


def open_url(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the URL's path in it, without a slash at its end.

    Raises:
        RefusedInput: fsspec does not know the URL's scheme, or lacks a package for it.
    """
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RefusedInput(f"{url} cannot be opened: {error}") from error
    return files, path.rstrip("/")


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL; its bytes are taken as they are."""

    url: str
    is_remote = True

    @property
    def where(self) -> str:
        """The URL."""
        return self.url

    def read(self) -> bytes:
        """Bytes of the file, asked for again after a pause if that fails.

        Raises:
            OSError: There is no such file, or it is not for us.
            SourceUnavailable: All attempts failed. The build ends then: to leave the file out as
                one that cannot be read would lose images to a bad hour of the network.
        """
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                files, path = open_url(self.url)
                return bytes(files.cat_file(path))
            except (*_FIRM, RefusedInput):
                raise
            except Exception as error:  # clients of object stores raise many kinds
                last = error
        raise SourceUnavailable(
            f"{self.url} could not be read in {_ATTEMPTS} attempts ({type(last).__name__}: "
            f"{last}); shards that are finished stay, and the same command goes on behind them"
        ) from last


@dataclass
class RemoteSource(FileSource):
    """Image files below a URL; `sizes` are in bytes, negative where the server does not tell."""

    url: str = ""
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def images(self, rows: NDArray[np.int64]) -> list[Any]:
        """The files of some rows."""
        return [RemoteFile(f"{self.url}/{self.files[row]}") for row in rows.tolist()]

    def size_bounds(self) -> NDArray[np.int64]:
        """Sizes of the files in bytes.

        Raises:
            RefusedInput: The server lists no sizes.
        """
        if np.any(self.sizes < 0):
            raise RefusedInput(f"{self.url} lists no sizes: cut the shards by --shard-images")
        return self.sizes


def list_below(url: str) -> Mapping[str, int]:
    """Files below a URL at any depth: paths relative to it, and sizes (-1 if not told).

    Raises:
        RefusedInput: It cannot be listed.
    """
    files, root = open_url(url)
    try:
        found = files.find(root, detail=True)
    except Exception as error:  # as above
        raise RefusedInput(
            f"--input {url} cannot be listed: {type(error).__name__}: {error}"
        ) from error
    sizes = {}
    for path, facts in found.items():
        name = path.removeprefix(root).lstrip("/")
        size = facts.get("size")
        if name and not path.endswith("/"):  # some stores keep empty objects for folders
            sizes[name] = -1 if size is None else int(size)
    return sizes


def shown_name(url: str, name: str) -> str:
    """A path as people named it: web servers list theirs with percent signs for spaces."""
    return unquote(name) if url.startswith("http") else name
