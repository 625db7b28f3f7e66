"""A small source that is read as a stream, and builds from it that need no other process."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_pipeline.build import build_dataset, build_part
from data_pipeline.output_folder import Part
from data_pipeline.sources import StreamedImage
from tests.data_pipeline.official_layouts import image_bytes

FAST = {"workers": 1, "check": "quick", "progress": False}


@dataclass
class Stream:
    """Images sorted by class, ten of each; the fourth is none.

    `starts` gathers where it was read from, `num_read` how many files were.
    """

    count: int = 60
    padding_bytes: int = 0
    num_images: int | None = 60
    num_bytes: int = 1_000_000
    name: str = "stream"
    split: str = "train"

    starts: list[int] = field(default_factory=list)
    num_read: int = 0

    def __post_init__(self):
        self.classes = tuple(f"class{n}" for n in range(-(-self.count // 10)))

    def read(self, data: bytes) -> bytes:
        self.num_read += 1
        return data

    def stream(self, start=0):
        self.starts.append(start)
        data = image_bytes(1) + bytes(self.padding_bytes)
        for number in range(start, self.count):
            file = b"no image" if number == 3 else data
            yield StreamedImage(number // 10, f"place {number}", partial(self.read, file))

    def fingerprint(self):
        return "0"

    def options(self):
        return {}

    def notices(self):
        return ["a notice"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def part(output, text: str, stream=None, **options):
    options = {**FAST, **options}
    return build_part(stream or Stream(), None, "train", output, Part.parse(text), **options)


def build(output, stream=None, **options):
    options = {**FAST, **options}
    return build_dataset(stream or Stream(), None, "train", output, **options)
