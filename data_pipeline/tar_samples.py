"""Where the members of a WebDataset tar lie, grouped into samples as webdataset groups them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_pipeline.tar_headers import StrictHeader

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
# Members that describe the archive; webdataset's readers skip them too.
_META_NAME = re.compile(r"__[^/]*__($|/)")


class DamagedTar(Exception):
    """A file that is not a complete plain tar; the message is the reason."""


@dataclass(frozen=True)
class MemberPlace:
    """Where a member's bytes lie in the tar; `extension` as spelled in its name."""

    extension: str
    offset: int
    size: int

    def read(self, file: IO[bytes]) -> bytes:
        """The member's bytes, from the open tar."""
        file.seek(self.offset)
        return file.read(self.size)


@dataclass(frozen=True)
class TarSample:
    """Members that share a key, by extension in lower case."""

    key: str
    members: dict[str, MemberPlace]

    def images(self) -> list[MemberPlace]:
        """Its members that are image files by their extension."""
        return [self.members[name] for name in IMAGE_EXTENSIONS if name in self.members]


def read_samples(path: Path) -> Iterator[TarSample]:
    """Samples of a tar in its order; reads headers only.

    Raises:
        DamagedTar: It is compressed, cut short, no tar, or names a member twice.
    """
    from webdataset.tariterators import group_by_keys  # imports torch

    damage: list[str] = []
    try:
        for sample in group_by_keys(_members(path, damage)):
            places = {name: place for name, place in sample.items() if not name.startswith("__")}
            yield TarSample(sample["__key__"], places)
    except ValueError as error:  # webdataset: a member name comes twice
        raise DamagedTar(str(error.args[0])) from error
    if damage:
        raise DamagedTar(f"not a plain, complete tar file: {damage[0]}")


def _members(path: Path, damage: list[str]) -> Iterator[dict[str, Any]]:
    """Regular members up to the end or to where the tar is damaged, which is added to `damage`.

    Raising here would lose the sample that is being grouped.
    """
    try:
        # "r:" takes no compression: offsets into a compressed tar would mean nothing.
        with tarfile.open(path, "r:", tarinfo=StrictHeader) as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"].clear()  # tarfile keeps every header it has seen
                if not member.isreg() or _META_NAME.match(member.name):
                    continue
                name = member.name.rpartition("/")[2]
                extension = name.partition(".")[2]
                place = MemberPlace(extension, member.offset_data, member.size)
                yield {"fname": member.name, "data": place, "__url__": str(path)}
    except tarfile.TarError as error:
        damage.append(_compression(path) or str(error))


def _compression(path: Path) -> str | None:
    """What is said of a file that is compressed; None if it is not."""
    with open(path, "rb") as file:
        begin = file.read(6)
    for magic, kind in _COMPRESSED.items():
        if begin.startswith(magic):
            return f"it is compressed ({kind}), so nothing in it has an offset; decompress it"
    return None
