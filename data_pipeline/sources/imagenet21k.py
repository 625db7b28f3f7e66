"""ImageNet-21k from its archives as they were downloaded, read once and unpacked nowhere.

`fall11_whole.tar` and `winter21_whole.tar.gz` hold a plain tar of each synset.

Source: https://image-net.org/download-images.php (Deng et al. 2009).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from configs.errors import RefusedInput
from data_pipeline.sources.archives import list_archive, reading_archive
from data_pipeline.sources.class_list import read_class_list
from data_pipeline.sources.input_files import InputFile, InputFolder
from data_pipeline.sources.stream_source import StreamedImage, files_fingerprint

_PATTERN = "*_whole.tar*"
_GET = "give winter21_whole.tar.gz or fall11_whole.tar, or the folder that holds one of them"


@dataclass
class ImageNet21kSource:
    """The images of the synsets in `classes`; other synsets of the archive are passed over."""

    archive: InputFile
    classes: tuple[str, ...]
    name: str = "imagenet-21k"
    split: str = "train"
    num_images: int | None = None
    _passed_over: set[str] = field(default_factory=set)
    _met: set[str] = field(default_factory=set)

    @property
    def num_bytes(self) -> int:
        """Size of the archive."""
        return self.archive.num_bytes

    def stream(self, start: int = 0) -> Iterator[StreamedImage]:
        """Images synset by synset, as the archive has them; the headers of all are read."""
        return islice(self._images(), start, None)

    def _images(self) -> Iterator[StreamedImage]:
        number_of = {text.split()[0]: number for number, text in enumerate(self.classes)}
        with reading_archive(self.archive) as outer:
            for synset in outer:
                wnid = _wnid(synset.name)
                if wnid not in number_of:
                    self._passed_over.add(wnid)
                    continue
                self._met.add(wnid)
                for member in synset.members():
                    where = f"{self.archive}: {synset.name}/{member.name}"
                    yield StreamedImage(number_of[wnid], where, member.read)

    def fingerprint(self) -> str:
        """Identity of the archive's name and size and of the classes."""
        return files_fingerprint([self.archive], self.classes)

    def options(self) -> dict[str, Any]:
        """The archive's name."""
        return {"archive": self.archive.name}

    def notices(self) -> list[str]:
        """Synsets that were passed over, and classes without images."""
        found = []
        if self._passed_over:
            found.append(
                f"passed over {len(self._passed_over):,} synsets that --classes does not name "
                f"(such as {min(self._passed_over)})"
            )
        empty = [text for text in self.classes if text.split()[0] not in self._met]
        if empty:
            found.append(f"{len(empty):,} classes have no images (such as {empty[0]})")
        return found


def read_imagenet21k(
    place: Path | str, split: str, *, classes: Path | None = None
) -> ImageNet21kSource:
    """Open the archive; `classes` is a list of synsets, which numbers them and leaves others out.

    Without a list, the synsets of a plain tar on this machine are numbered by their sorted ids.

    Raises:
        RefusedInput: The archive is missing, or is compressed or remote and no list is given.
    """
    archives = InputFolder(place).find((_PATTERN,), _GET)
    if len(archives) > 1:
        raise RefusedInput(f"{place} holds {archives[0].name} and {archives[1].name}; {_GET}")
    archive = archives[0]
    if classes is not None:
        names = tuple(read_class_list(classes).values())
    elif isinstance(archive.place, Path) and archive.place.suffix == ".tar":
        names = tuple(sorted({_wnid(place.name) for place in list_archive(archive.place)}))
    else:
        why = "compressed" if isinstance(archive.place, Path) else "remote"
        raise RefusedInput(
            f"{archive} is {why}, so its synsets are not known before it has been read: "
            "give their list with --classes FILE, one WordNet id a line"
        )
    return ImageNet21kSource(archive, names, split=split)


def _wnid(member_name: str) -> str:
    """`winter21_whole/n00004475.tar` is of synset n00004475."""
    return PurePosixPath(member_name).stem
