"""A pretraining set made by formula: one iterated function system per class, no download.

Small grey PNG squares by default; with `image_format="jpeg"` coloured, textured 4:3 pictures that
cost as much to decode as photographs of their size, for loader benchmarks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.order import random_generator
from data_pipeline.sources.iterated_functions import (
    Systems,
    chaos_game,
    draw_density,
    random_system,
)
from data_pipeline.sources.source import encode_image

# How much the images of a class differ; by eye, at 0.1 a class stays recognisable at 32 px.
_VARIATION = 0.1
_POINTS_PER_PIXEL = 3
# A system must light up this share of 32 x 32 px: below it is dust, above a blot.
_MIN_LIT, _MAX_LIT = 0.2, 0.8
_TRIAL_PX, _TRIAL_POINTS = 32, 2048
# With this noise and quality a 500 x 375 picture takes 100 to 110 KB, as an ImageNet photo does.
_NOISE = 17.0
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class FractalOptions:
    """Which fractals: `px` is the side, or the longer side of JPEG pictures, in pixels.

    Every split draws other images of the same classes; classes depend on `seed` alone.
    """

    classes: int = 100
    images_per_class: int = 100
    px: int = 32
    seed: int = 0
    image_format: Literal["png", "jpeg"] = "png"

    def __post_init__(self) -> None:
        """Refuse numbers that give no images."""
        for name, lowest in (("classes", 2), ("images_per_class", 1), ("px", 8), ("seed", 0)):
            if getattr(self, name) < lowest:
                option = f"--fractal-{name.replace('_', '-')}"
                raise RefusedInput(f"{option} {getattr(self, name)}: give at least {lowest}")


@dataclass(frozen=True)
class FractalImage:
    """One image that is generated when it is read."""

    where: str
    system: Systems
    options: FractalOptions
    rng_key: tuple[str, int, int, int]

    def read(self) -> bytes:
        """The image as a PNG or JPEG file, a function of the key alone."""
        rng = random_generator(*self.rng_key)
        if self.options.image_format == "png":
            density = render(self.system, (self.options.px, self.options.px), rng)
            return encode_image(np.rint(density * 255).astype(np.uint8), "PNG")
        return encode_image(
            _picture(self.system, self.options.px, rng), "JPEG", quality=_JPEG_QUALITY
        )


class FractalSource:
    """Fractals as a source: class by class, images of a class in turn."""

    name = "fractals"

    def __init__(self, split: str, options: FractalOptions | None = None) -> None:
        """Take a split's name and which fractals; nothing is drawn yet."""
        self.split = split
        self.fractals = options or FractalOptions()
        self.classes = tuple(f"fractal-{number:05d}" for number in range(self.fractals.classes))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers, shape (classes x images_per_class,)."""
        numbers = np.arange(self.fractals.classes, dtype=np.int64)
        return np.repeat(numbers, self.fractals.images_per_class)

    @cached_property
    def systems(self) -> list[Systems]:
        """The system of every class; about 1 ms each."""
        return [class_system(self.fractals.seed, label) for label in range(len(self.classes))]

    def images(self, rows: NDArray[np.int64]) -> Sequence[FractalImage]:
        """Images to be generated in whichever process reads them."""
        found = []
        for row in rows.tolist():
            label, number = divmod(row, self.fractals.images_per_class)
            found.append(
                FractalImage(
                    where=f"fractal {number} of class {label}, split {self.split}",
                    system=self.systems[label],
                    options=self.fractals,
                    rng_key=(f"fractal image {self.split}", self.fractals.seed, label, number),
                )
            )
        return found

    def size_bounds(self) -> NDArray[np.int64]:
        """Raw size of the pixels plus what a file format adds."""
        channels = 1 if self.fractals.image_format == "png" else 3
        largest = channels * self.fractals.px**2 * 102 // 100 + 1024
        return np.full(len(self.labels), largest, dtype=np.int64)

    def fingerprint(self) -> str:
        """Identity of options and split."""
        return hashlib.sha256(f"{self.split} {json.dumps(self.options())}".encode()).hexdigest()

    def options(self) -> dict[str, Any]:
        """Which fractals, for the manifest."""
        return asdict(self.fractals)


def class_system(seed: int, label: int) -> Systems:
    """The system of a class: the first one drawn that is neither dust nor a blot."""
    rng = random_generator("fractal class", seed, label)
    while True:
        system = random_system(rng)
        points = chaos_game(system, _TRIAL_POINTS, rng)
        lit = float((draw_density(points, _TRIAL_PX, _TRIAL_PX) > 0).mean())
        if _MIN_LIT <= lit <= _MAX_LIT:
            return system


def render(system: Systems, size_px: tuple[int, int], rng: np.random.Generator) -> NDArray:
    """A variation of a system, shape (height, width) = `size_px`, brightness 0..1."""
    varied = system.varied(rng, _VARIATION)
    points = chaos_game(varied, _POINTS_PER_PIXEL * size_px[0] * size_px[1], rng)
    return draw_density(points, *size_px)[0]


def _picture(system: Systems, longer_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A coloured fractal before a shaded, noisy background, shape (H, W, 3), either orientation."""
    shorter_px = max(1, longer_px * 3 // 4)
    size_px = (shorter_px, longer_px) if rng.random() < 0.75 else (longer_px, shorter_px)
    density = render(system, size_px, rng)[..., None].astype(np.float32)
    corners = rng.uniform(40, 200, (3, 3)).astype(np.float32)
    down = np.linspace(0, 1, size_px[0], dtype=np.float32)[:, None, None]
    across = np.linspace(0, 1, size_px[1], dtype=np.float32)[None, :, None]
    background = corners[0] + (corners[1] - corners[0]) * down + (corners[2] - corners[0]) * across
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    pixels = background + (colour - background) * density
    pixels += _NOISE * rng.standard_normal(size_px, dtype=np.float32)[..., None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
