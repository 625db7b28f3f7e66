"""Files that a source reads itself, archives and tables: on this machine, or at URLs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import IO

from configs.errors import RefusedInput
from data_pipeline.sources.remote_files import list_below, shown_name, source_transfers

_BUFFER_BYTES = 1 << 16
# Nothing else tells a file's URL from a folder's before it is asked for.
_FILE_ENDINGS = (".tar", ".gz", ".tgz", ".parquet")


@dataclass(frozen=True)
class InputFile:
    """A file of a source and its size in bytes; as text, its path or URL."""

    place: Path | str
    num_bytes: int

    @classmethod
    def at(cls, path: Path) -> InputFile:
        """A file on this machine; raises OSError if there is none."""
        return cls(path, path.stat().st_size)

    @property
    def name(self) -> str:
        """Its last name, the same wherever it lies."""
        if isinstance(self.place, Path):
            return self.place.name
        return shown_name(self.place, self.place.rpartition("/")[2])

    def open(self) -> IO[bytes]:
        """The file to read, buffered, at its beginning.

        Raises:
            OSError: It is not there, or not for us.
            SourceUnavailable: A remote one could not be had; also while it is read.
        """
        if isinstance(self.place, Path):
            return open(self.place, "rb", buffering=_BUFFER_BYTES)
        from data_pipeline.sources.remote_reading import open_remote  # imports HTTP clients

        return open_remote(self.place, self.num_bytes)

    def __str__(self) -> str:
        """Path or URL, for messages."""
        return str(self.place)


@dataclass(frozen=True)
class InputFolder:
    """What `--input` names: a folder, a URL of one, or a single file."""

    place: Path | str

    @property
    def name(self) -> str:
        """Its last name, without an ending if it is a file's."""
        if isinstance(self.place, Path):
            path = self.place.resolve()
            return path.stem if path.is_file() else path.name
        return Path(shown_name(self.place, self.place.rstrip("/").rpartition("/")[2])).stem

    def matching(self, pattern: str) -> list[InputFile]:
        """Its files whose path below it fits a glob pattern, part for part; sorted.

        Raises:
            ShardUnavailable: The URL cannot be listed.
        """
        if isinstance(self.place, Path):
            return [
                InputFile.at(path) for path in sorted(self.place.glob(pattern)) if path.is_file()
            ]
        url = self.place.rstrip("/")
        names = sorted(name for name in self._listing if _fits(shown_name(url, name), pattern))
        return [InputFile(f"{url}/{name}", _known_size(url, name, self._listing)) for name in names]

    def find(self, patterns: Sequence[str], get: str) -> list[InputFile]:
        """The input itself if it is a file, else what the first fitting pattern finds in it.

        Raises:
            RefusedInput: There is none; the message says with `get` what to give.
        """
        if isinstance(self.place, Path):
            if self.place.is_file():
                return [InputFile.at(self.place)]
            if not self.place.is_dir():
                raise RefusedInput(f"--input {self.place} is not a folder or a file; {get}")
        elif self.place.endswith(_FILE_ENDINGS):
            return [InputFile(self.place, _size_at(self.place))]
        for pattern in patterns:
            found = self.matching(pattern)
            if found:
                return found
        raise RefusedInput(f"{self.place}/{patterns[0]} is missing; {get}")

    @cached_property
    def _listing(self) -> dict[str, int]:
        return dict(list_below(str(self.place)))


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _known_size(url: str, name: str, listing: dict[str, int]) -> int:
    """Size of a listed file; web servers list names only."""
    return listing[name] if listing[name] >= 0 else _size_at(f"{url}/{name}")


def _size_at(url: str) -> int:
    from data_pipeline.remote.faults import ShardWrong  # imports HTTP clients

    try:
        size = source_transfers().size(url)
    except ShardWrong as error:
        raise RefusedInput(f"--input: there is no file {url}: {error}") from error
    if size is None:
        raise RefusedInput(f"--input {url}: the server does not tell its size; download it first")
    return size
