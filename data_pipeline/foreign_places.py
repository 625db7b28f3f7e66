"""Where shards lie that were written elsewhere: local files, or URLs that fsspec can read."""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from configs.errors import RefusedInput
from data_pipeline.sources.remote_files import source_transfers

# A local file, or the URL of a remote one.
ShardPlace = Path | str

_MAGIC = re.compile(r"[*?\[]")
_REQUESTS_AT_ONCE = 32


def find_shards(pattern: str) -> list[ShardPlace]:
    """Files or URLs that a pattern with `{000..099}`, `{a,b}`, `*`, `?` and `[...]` names.

    Local paths are made absolute.

    Raises:
        RefusedInput: It is a command or a chained URL, or carries credentials; a file of a brace
            list is missing, or nothing fits.
    """
    from webdataset.shardlists import expand_urls  # imports torch

    is_remote = "://" in pattern
    if pattern.startswith("pipe:") or "::" in pattern:
        raise RefusedInput(f"--shards {pattern}: commands and chained URLs are never followed")
    if is_remote:
        _refuse_credentials(pattern)
    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise RefusedInput(f"--shards {pattern}: {error}") from error
    found: list[ShardPlace] = []
    for name in names:
        matches = _remote_matches(name) if is_remote else _local_matches(name)
        if not matches:
            raise RefusedInput(f"--shards {pattern}: there is no file {name}")
        found += matches
    folders = [place for place in found if isinstance(place, Path) and not place.is_file()]
    if folders:
        raise RefusedInput(f"--shards {pattern}: {folders[0]} is not a file; name the tars, *.tar")
    return list(dict.fromkeys(found))


def shard_sizes(places: list[ShardPlace]) -> list[int]:
    """Sizes of shards in bytes.

    Raises:
        RefusedInput: There is no such file, or the server does not tell.
    """
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        return list(threads.map(_size, places))


@contextmanager
def local_file(place: ShardPlace) -> Iterator[Path]:
    """The shard as a file on this machine; a remote one is downloaded, and removed afterwards.

    Raises:
        RefusedInput: It cannot be had.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="vitrain-index-") as folder:
        path = Path(folder) / "shard.tar"
        _download(place, path)
        yield path


def _refuse_credentials(pattern: str) -> None:
    parts = urlsplit(pattern.partition("{")[0])
    # A "?" is a wildcard in s3:// and gs://, and begins a query in http://.
    if "@" in parts.netloc or (pattern.startswith("http") and "?" in pattern):
        shown = pattern.rpartition("@")[2].partition("?")[0]
        raise RefusedInput(
            f"--shards ...{shown}: the manifest would hold the user, password or query of this "
            "URL; give a plain one, and credentials in the environment or the client's own files"
        )


def _local_matches(name: str) -> list[ShardPlace]:
    return [Path(match).absolute() for match in sorted(glob.glob(name))]


def _remote_matches(name: str) -> list[ShardPlace]:
    magic = _MAGIC.search(name)
    if magic is None:
        return [name]
    folder = name[: magic.start()].rpartition("/")[0]
    transfers = source_transfers()
    # Matches come without scheme, and of some file systems without host: they stand behind this.
    root = transfers.ask(folder, lambda _, path: path.rstrip("/"))
    found = transfers.ask(name, lambda files, path: sorted(files.glob(path)))
    return [f"{folder}{match.removeprefix(root)}" for match in found]


def _size(place: ShardPlace) -> int:
    if isinstance(place, Path):
        return place.stat().st_size
    with _naming_what_is_missing(place):
        size = source_transfers().size(place)
    if size is None:
        raise RefusedInput(f"{place}: the server does not tell its size; download it first")
    return size


def _download(url: str, path: Path) -> None:
    from data_pipeline.remote.transfer import FileSink

    with open(path, "wb", buffering=0) as file, _naming_what_is_missing(url):
        sink = FileSink(file.fileno(), str(path), room="or name another folder by TMPDIR")
        source_transfers().copy(url, sink)


@contextmanager
def _naming_what_is_missing(url: str) -> Iterator[None]:
    from data_pipeline.remote.faults import ShardWrong

    try:
        yield
    except ShardWrong as error:
        raise RefusedInput(f"--shards: there is no file {url}: {error}") from error
