"""Sizes and pixels: how an image is brought to the size of the model's input."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch.nn.functional import interpolate

from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from data_pipeline.jpeg_crop import Box


class Resizing(NamedTuple):
    """How pixels are interpolated; docs/data_loading.md compares the four ways."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True

    @classmethod
    def of(cls, augment: AugmentConfig) -> Resizing:
        """What `augment.interpolation` and `augment.antialias` ask for."""
        return cls(augment.interpolation, augment.antialias)

    def __call__(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resize uint8 (3, H, W) to `size`; the image itself where it has that size."""
        if tuple(image.shape[1:]) == size:
            return image
        mode, antialias = self
        return interpolate(_as_batch(image), size=size, mode=mode, antialias=antialias)[0]


def _as_batch(image: torch.Tensor) -> torch.Tensor:
    """The image as a batch of one, without a copy."""
    if image.stride(0) != 1:
        return image[None]
    # Packed RGB: a leading dimension of its own would get a stride by which torch no longer sees
    # channels-last memory, and would copy into planes and back.
    return image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)


def default_resize_px(image_size: tuple[int, int]) -> int:
    """8/7 of the shorter side: 256 for 224, as the protocol evaluates."""
    return round(min(image_size) * 8 / 7)


def covering_size(image_size: tuple[int, int], resize_px: int, option: str) -> tuple[int, int]:
    """(height, width) that a resized image must cover, so that a crop of `image_size` fits.

    Raises:
        RefusedInput: `resize_px` is smaller than the result.
    """
    shorter = min(image_size)
    if resize_px < shorter:
        raise RefusedInput(
            f"{option} = {resize_px} is below the input's {shorter} pixels; give at least {shorter}"
        )
    height, width = image_size
    return round(height * resize_px / shorter), round(width * resize_px / shorter)


def fit_over(size: tuple[int, ...], covering: tuple[int, int]) -> tuple[int, int]:
    """Smallest (height, width) of the aspect ratio of `size` that covers `covering`.

    For a square, this is torchvision's `Resize(px)`: the longer side is rounded down.
    """
    height, width = size
    need_height, need_width = covering
    if height * need_width <= width * need_height:
        return need_height, max(need_width, need_height * width // height)
    return max(need_height, need_width * height // width), need_width


def centre_box(whole: tuple[int, int], size: tuple[int, int]) -> Box:
    """Middle of an image of `whole` (height, width); both sides at least those of `size`."""
    return Box(round((whole[0] - size[0]) / 2), round((whole[1] - size[1]) / 2), *size)


def centre_crop(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Middle of `image` (3, H, W), as a view."""
    return centre_box((image.shape[1], image.shape[2]), size).cut(image)
