"""The copies that a leak finder should find, as a source that `data_pipeline.build` can write."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

# A copy is saved once more, as a copy found in the wild is.
SAVED_AT_QUALITY = 90
Pixels = Image.Image
Make = Callable[[Pixels, random.Random], Pixels]


def resized(factor: float) -> Make:
    """Both sides times the factor."""
    return lambda image, _: image.resize(
        [max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC
    )


def cropped(image: Pixels, chance: random.Random) -> Pixels:
    """95 % of each side, at a random place."""
    width, height = (round(0.95 * side) for side in image.size)
    left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def mirrored(image: Pixels, _: random.Random) -> Pixels:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def brightness(factor: float) -> Make:
    """Values times the factor, cut at white."""
    return lambda image, _: ImageEnhance.Brightness(image).enhance(factor)


def unchanged(image: Pixels, _: random.Random) -> Pixels:
    """The pixels as they are, for copies that differ by their compression only."""
    return image


def everything(image: Pixels, chance: random.Random) -> Pixels:
    """Mirrored, cropped by 5 %, two thirds the size and a little brighter."""
    for step in (mirrored, cropped, resized(2 / 3), brightness(1.15)):
        image = step(image, chance)
    return image


# Name, JPEG quality (None: PNG), what is done, and the target for its recall.
COPIES: tuple[tuple[str, int | None, Make, float | None], ...] = (
    ("same pixels, as PNG", None, unchanged, 1.0),
    ("re-encoded, quality 75", 75, unchanged, 0.99),
    ("re-encoded, quality 50", 50, unchanged, 0.99),
    ("resized to 50 %", SAVED_AT_QUALITY, resized(0.5), 0.99),
    ("resized to 75 %", SAVED_AT_QUALITY, resized(0.75), 0.99),
    ("resized to 200 %", SAVED_AT_QUALITY, resized(2.0), 0.99),
    ("cropped by 5 %", SAVED_AT_QUALITY, cropped, None),
    ("mirrored", SAVED_AT_QUALITY, mirrored, 0.95),
    ("brightness x 0.7", SAVED_AT_QUALITY, brightness(0.7), 0.95),
    ("brightness x 1.3", SAVED_AT_QUALITY, brightness(1.3), 0.95),
    ("brightness x 1.5", SAVED_AT_QUALITY, brightness(1.5), 0.95),
    ("mirrored, cropped, smaller, brighter", 75, everything, None),
)


@dataclass(frozen=True)
class PlantedCopy:
    """A copy of an image file, made when it is read; `kind` is its place in `COPIES`."""

    path: str
    kind: int

    @property
    def where(self) -> str:
        """The original and what is done to it."""
        return f"{self.path}, {COPIES[self.kind][0]}"

    def read(self) -> bytes:
        """The copy as an image file."""
        import torch

        from data_pipeline.decode import decode_image

        data = bytearray(Path(self.path).read_bytes())
        pixels: torch.Tensor = decode_image(data, max_pixels=1 << 30)
        _, quality, make, _ = COPIES[self.kind]
        image = make(
            Image.fromarray(pixels.permute(1, 2, 0).numpy()),
            random.Random(f"{self.path} {self.kind}"),
        )
        file = io.BytesIO()
        if quality is None:
            image.save(file, "PNG")
        else:
            image.save(file, "JPEG", quality=quality)
        return file.getvalue()


@dataclass
class CopySource:
    """Every kind of copy of every file: first all of the first kind. The class is the kind."""

    files: Sequence[str]
    name: str = "planted copies"
    split: str = "train"
    classes: tuple[str, ...] = tuple(name for name, *_ in COPIES)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The kinds."""
        return np.repeat(np.arange(len(COPIES)), len(self.files))

    def images(self, rows: NDArray[np.int64]) -> list[PlantedCopy]:
        """The copies of some rows."""
        kinds, numbers = np.divmod(rows, len(self.files))
        return [
            PlantedCopy(self.files[number], kind)
            for kind, number in zip(kinds.tolist(), numbers.tolist(), strict=True)
        ]

    def size_bounds(self) -> NDArray[np.int64]:
        """Not needed where shards are cut by number."""
        raise NotImplementedError("cut the shards by their number of images")

    def fingerprint(self) -> str:
        """Nothing that is compared: every run builds in an empty folder."""
        return "planted"

    def options(self) -> dict[str, Any]:
        """Nothing."""
        return {}
