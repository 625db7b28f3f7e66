"""Image files below a URL (s3://, gs://, http(s)://, ...), listed and read through fsspec."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.location import ShardAccess
from data_pipeline.sources.source import FileSource

if TYPE_CHECKING:
    from data_pipeline.remote.transfer import Transfers


class SourceUnavailable(RefusedInput):
    """A remote file could not be had, though it was asked for again and again."""


@cache
def source_transfers() -> Transfers:
    """What reads everything remote that datasets are made from, with the budget of a run."""
    from data_pipeline.remote.statistics import RemoteStatistics
    from data_pipeline.remote.transfer import Transfers  # imports requests and fsspec

    return Transfers(ShardAccess(), RemoteStatistics(), threading.Event(), budget_option="")


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, of `size` bytes (negative: not known); its bytes are taken as they are."""

    url: str
    size: int = -1
    is_remote = True

    @property
    def where(self) -> str:
        """The URL."""
        return self.url

    def read(self) -> bytes:
        """Bytes of the file.

        Raises:
            OSError: The file is missing, or shorter than it was when it was listed.
            SourceUnavailable: It could not be had. The build ends then: to leave the file out as
                one that cannot be read would lose images to a bad hour of the network.
        """
        from data_pipeline.remote.faults import ShardUnavailable, ShardWrong

        transfers = source_transfers()
        try:
            if self.size < 0:
                return bytes(transfers.read_all(self.url))
            return bytes(transfers.read_range(self.url, 0, self.size, self.size))
        except ShardWrong as error:
            raise OSError(str(error)) from error
        except ShardUnavailable as error:
            raise SourceUnavailable(
                f"{error}; shards that are finished stay, and the same command goes on behind them"
            ) from error


@dataclass
class RemoteSource(FileSource):
    """Image files below a URL; `sizes` are in bytes, negative where the server does not tell."""

    url: str = ""
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def images(self, rows: NDArray[np.int64]) -> list[Any]:
        """The files of some rows."""
        return [
            RemoteFile(f"{self.url}/{self.files[row]}", int(self.sizes[row]))
            for row in rows.tolist()
        ]

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
        ShardUnavailable: It cannot be listed.
    """

    def find(files: Any, root: str) -> dict[str, Any]:
        found: dict[str, Any] = files.find(root, detail=True)
        return {
            path.removeprefix(root.rstrip("/")).lstrip("/"): facts.get("size")
            for path, facts in found.items()
            if not path.endswith("/")  # some stores keep empty objects for folders
        }

    found = source_transfers().ask(url, find)
    return {name: -1 if size is None else int(size) for name, size in found.items() if name}


def shown_name(url: str, name: str) -> str:
    """A path as people named it: web servers list theirs with percent signs for spaces."""
    return unquote(name) if url.startswith("http") else name
