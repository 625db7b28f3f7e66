"""RandAugment on a batch of bytes, on its device: which operations an image gets, and how strong.

The arithmetic of the operations is in `training.image_operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto

import numpy as np
import torch
from numpy.typing import NDArray

from training.counter_draws import draws_key, uniform_draws
from training.image_operations import (
    autocontrast_tables,
    cut_out,
    equalize_tables,
    fixed_tables,
    look_up,
    saturate,
    sharpen,
    to_device,
    transform,
)

_MAX_LEVEL = 10.0
_REFERENCE_PX = 224  # distances in pixels are the published ones at this size
_DRAWS_PER_LAYER = 4


class Operation(IntEnum):
    """The published operations, in an order of our own; each is as likely as the others."""

    INVERT = 0
    POSTERIZE = auto()
    SOLARIZE = auto()
    SOLARIZE_ADD = auto()
    CONTRAST = auto()
    BRIGHTNESS = auto()
    AUTOCONTRAST = auto()
    EQUALIZE = auto()
    COLOR = auto()
    SHARPNESS = auto()
    ROTATE = auto()
    SHEAR_X = auto()
    SHEAR_Y = auto()
    TRANSLATE_X = auto()
    TRANSLATE_Y = auto()
    CUTOUT = auto()


# The operations that are one table from bytes to bytes, the same for every image.
_FIXED = range(Operation.INVERT, Operation.AUTOCONTRAST)
_GEOMETRIC = range(Operation.ROTATE, Operation.CUTOUT)


class RandAugment:
    """Several random operations on each image, one after the other, all of the same magnitude.

    What an image gets is a function of (seed, position), and the arithmetic is on whole numbers or
    rounds the same everywhere: the pixels do not depend on which images share a batch, nor on the
    device. Images of a batch that get operations of one kind are changed together.

    Args:
        layers: operations an image gets.
        magnitude: strength of each; 0 to 30, and 0 is not nothing.
        seed: of the draws.

    Source: RandAugment (arXiv:1909.13719), with the operations, ranges and fill of the code that
    its authors and those of "How to train your ViT" published. Differences: docs/augmentation.md.
    """

    def __init__(self, layers: int, magnitude: float, seed: int) -> None:
        """Fix what does not depend on the images."""
        self._layers = layers
        self._magnitude = magnitude
        self._factor = magnitude / _MAX_LEVEL * 1.8 + 0.1
        self._key = draws_key("randaugment", seed)
        self._tables = fixed_tables(
            posterize_bits=int(magnitude / _MAX_LEVEL * 4),
            solarize_threshold=int(magnitude / _MAX_LEVEL * 256),
            solarize_addition=int(magnitude / _MAX_LEVEL * 110),
            factor=self._factor,
        )

    def __call__(self, images: torch.Tensor, positions: NDArray[np.int64]) -> torch.Tensor:
        """The changed images.

        Args:
            images: uint8 (batch, 3, height, width), on any device.
            positions: int64 (batch,), the global position of each.
        """
        draws = uniform_draws(self._key, positions, self._layers * _DRAWS_PER_LAYER)
        changed = images.clone()
        for layer in np.split(draws, self._layers, axis=1):
            operations = (layer[:, 0] * len(Operation)).astype(np.int64)
            for kind, change in self._changes():
                chosen = np.flatnonzero(np.isin(operations, kind))
                if len(chosen):
                    index = to_device(chosen, images.device)
                    part = change(changed[index], operations[chosen], layer[chosen, 1:])
                    changed[index] = part
        return changed

    def _changes(self) -> list[tuple[list[int], _Change]]:
        """Which operations are done together, and how."""
        return [
            (list(_FIXED), self._by_fixed_table),
            ([Operation.AUTOCONTRAST], lambda part, *_: look_up(part, autocontrast_tables(part))),
            ([Operation.EQUALIZE], lambda part, *_: look_up(part, equalize_tables(part))),
            ([Operation.COLOR], lambda part, *_: saturate(part, self._factor)),
            ([Operation.SHARPNESS], lambda part, *_: sharpen(part, self._factor)),
            (list(_GEOMETRIC), self._transformed),
            ([Operation.CUTOUT], self._cut_out),
        ]

    def _by_fixed_table(
        self, images: torch.Tensor, operations: NDArray[np.int64], _draws: NDArray[np.float64]
    ) -> torch.Tensor:
        tables = to_device(self._tables[operations], images.device)
        return look_up(images, tables[:, None, :])

    def _transformed(
        self, images: torch.Tensor, operations: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> torch.Tensor:
        height, width = images.shape[-2:]
        maps = [
            self._map(Operation(operation), height, width, 1.0 if draw < 0.5 else -1.0)
            for operation, draw in zip(operations.tolist(), draws[:, 0], strict=True)
        ]
        return transform(images, np.array(maps))

    def _map(
        self, operation: Operation, height: int, width: int, sign: float
    ) -> tuple[float, float, float, float, float, float]:
        """Where an output pixel's source is: (a, b, c, d, e, f) for (ax + by + c, dx + ey + f)."""
        level = sign * self._magnitude / _MAX_LEVEL
        if operation is Operation.ROTATE:
            angle = np.radians(30.0 * level)
            cos, sin = float(np.cos(angle)), float(np.sin(angle))
            x, y = (width - 1) / 2, (height - 1) / 2  # the centre, which stays where it is
            return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
        if operation is Operation.SHEAR_X:
            return (1.0, 0.3 * level, 0.0, 0.0, 1.0, 0.0)
        if operation is Operation.SHEAR_Y:
            return (1.0, 0.0, 0.0, 0.3 * level, 1.0, 0.0)
        if operation is Operation.TRANSLATE_X:
            return (1.0, 0.0, 100.0 * level * width / _REFERENCE_PX, 0.0, 1.0, 0.0)
        return (1.0, 0.0, 0.0, 0.0, 1.0, 100.0 * level * height / _REFERENCE_PX)

    def _cut_out(
        self, images: torch.Tensor, _operations: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> torch.Tensor:
        height, width = images.shape[-2:]
        reach = int(self._magnitude / _MAX_LEVEL * 40 * min(height, width) / _REFERENCE_PX)
        centres = (draws[:, 1:3] * (height, width)).astype(np.int64)
        return cut_out(images, centres, reach)


_Change = Callable[[torch.Tensor, NDArray[np.int64], NDArray[np.float64]], torch.Tensor]
