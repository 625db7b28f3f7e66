"""What a training or evaluation image looks like: crop, resize, flip on uint8; then normalise.

Random choices are a function of (seed, position), so an image looks the same at any world size and
number of threads. Of a JPEG file only the crop is decoded, where that can be had (jpeg_crop.py).
Resizing is on bytes, bicubic with antialiasing unless the options say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from configs.data_groups import AugmentConfig
from data_pipeline.decode import Buffer, check_pixels, decode_image
from data_pipeline.gpu_decode import gpu_decoder
from data_pipeline.jpeg_crop import Box, covering_eighths, jpeg_cropper, write_planes
from data_pipeline.position_draws import PositionDraws, draws_key
from data_pipeline.resizing import (
    Resizing,
    centre_box,
    centre_crop,
    covering_size,
    default_resize_px,
    fit_over,
)

# "Inception" normalisation, values in [-1, 1]: what the ViT authors' code and weights use.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_CROP_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """The part of an image that a view is made of, and the draws that are left for the view.

    `pixels` is uint8 (3, H, W), possibly decoded at a smaller scale than the image, or resized.
    """

    pixels: torch.Tensor
    draws: PositionDraws


class TrainTransform:
    """Random crop, resize and flip of one image; see `AugmentConfig`.

    Args:
        augment: which crop, its bounds, and whether to flip.
        image_size: (height, width) of the result, in pixels.
        seed: of the random choices.
        decode: `data.decode`, where JPEG files are decoded.

    Raises:
        RefusedInput: `augment.resize_px` is smaller than the result, or there is no such decoder.
    """

    def __init__(
        self,
        augment: AugmentConfig,
        image_size: tuple[int, int],
        seed: int,
        *,
        decode: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        """Fix what does not depend on the image."""
        self.augment = augment
        self.image_size = image_size
        self._key = draws_key(seed)
        self.resize = Resizing.of(augment)
        # Asked for here, in the main thread, so that its absence is said before the work begins.
        self._cropper = jpeg_cropper() if augment.crop == "area" else None
        self._gpu = gpu_decoder(augment) if decode == "cuda" else None
        self._log_ratio_max = math.log(augment.crop_ratio_max)
        resize_px = None if augment.crop == "area" else augment.resize_px
        self._evaluation = EvalTransform(
            image_size, resize_px, resizing=self.resize, option="augment.resize_px"
        )

    def decode(self, data: Buffer, position: int, *, max_pixels: int) -> torch.Tensor | Crop:
        """What the view at `position` needs of an image file: its crop alone, or the whole image.

        Raises:
            BrokenImage: as `decode_image`, and of the same files.
        """
        cropper = self._cropper
        if cropper is not None and isinstance(data, bytearray):
            size = cropper.size(data)
            if size is not None:
                check_pixels(size[1], size[0], max_pixels)
                draws = PositionDraws(self._key, position)
                box = self.area_box(size, draws)
                pixels = None
                if self._gpu is not None:
                    pixels = self._gpu.view(data, box, self.image_size)
                if pixels is None:
                    scaling = self.augment.dct_scaling
                    eighths = covering_eighths(box, self.image_size) if scaling else 8
                    pixels = cropper.crop(data, box, eighths)
                if pixels is not None:
                    return Crop(pixels, draws)
        return decode_image(data, max_pixels=max_pixels)

    def __call__(self, image: torch.Tensor | Crop, position: int, out: torch.Tensor) -> None:
        """Write the view of `image` at `position` into `out` (3, height, width).

        Args:
            image: the whole, uint8 (3, H, W), or what `decode` gave for this position.
            position: global position.
            out: where the view goes, uint8.
        """
        if isinstance(image, Crop):
            draws, changed = image.draws, self.resize(image.pixels, self.image_size)
        else:
            draws = PositionDraws(self._key, position)
            changed = self._view(image, draws)
        # Drawn last but always, so that switching flips off leaves the crops as they were.
        mirror = self.augment.flip and draws.uniform() < 0.5
        write_planes(changed, mirror, out)

    def _view(self, image: torch.Tensor, draws: PositionDraws) -> torch.Tensor:
        if self.augment.crop == "area":
            size = (image.shape[1], image.shape[2])
            return self.resize(self.area_box(size, draws).cut(image), self.image_size)
        if self.augment.crop == "resize":
            return self._crop_resized(image, draws)
        return self._evaluation.view(image)

    def area_box(self, size: tuple[int, int], draws: PositionDraws) -> Box:
        """Random area and aspect ratio, as "Going deeper with convolutions" (2014), section 6."""
        height, width = size
        augment = self.augment
        for _ in range(_CROP_TRIES):
            share = augment.crop_area_min + draws.uniform() * (
                augment.crop_area_max - augment.crop_area_min
            )
            ratio = math.exp(self._log_ratio_max * (2 * draws.uniform() - 1))
            crop_width = round(math.sqrt(height * width * share * ratio))
            crop_height = round(math.sqrt(height * width * share / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = draws.below(height - crop_height + 1)
                left = draws.below(width - crop_width + 1)
                return Box(top, left, crop_height, crop_width)
        return self._centre_within_ratio(size)

    def _centre_within_ratio(self, size: tuple[int, int]) -> Box:
        """Largest centred crop whose ratio is allowed: what is left for very long images."""
        height, width = size
        widest = self.augment.crop_ratio_max
        crop_width = max(1, min(width, round(height * widest)))
        crop_height = max(1, min(height, round(width * widest)))
        return centre_box(size, (crop_height, crop_width))

    def _crop_resized(self, image: torch.Tensor, draws: PositionDraws) -> torch.Tensor:
        resized = self._evaluation.resized(image)
        height, width = self.image_size
        top = draws.below(resized.shape[1] - height + 1)
        left = draws.below(resized.shape[2] - width + 1)
        return resized[:, top : top + height, left : left + width]


class EvalTransform:
    """Shorter side to `resize_px`, then the centre; an image that has that size is not resized.

    For an input that is not square, both sides of the resized image are at least
    resize_px / (shorter side of the input) times the input's.

    Args:
        image_size: (height, width) of the result, in pixels.
        resize_px: shorter side before the centre crop; None means 8/7 of the result's.
        resizing: how pixels are interpolated; bicubic with antialiasing unless given.
        option: what a person calls `resize_px`, for the message when it is refused.

    Raises:
        RefusedInput: `resize_px` is smaller than the result.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        resize_px: int | None = None,
        *,
        resizing: Resizing | None = None,
        option: str = "eval_resize_px",
    ) -> None:
        """Check that the result fits into what is resized."""
        self.image_size = image_size
        self._resize = resizing or Resizing()
        resize_px = resize_px or default_resize_px(image_size)
        self._covering = covering_size(image_size, resize_px, option)

    def __call__(self, image: torch.Tensor, out: torch.Tensor) -> None:
        """Write the view of `image` (3, H, W) into `out` (3, height, width)."""
        write_planes(self.view(image), False, out)

    def view(self, image: torch.Tensor) -> torch.Tensor:
        """The resized centre of `image`, uint8 (3, height, width)."""
        return centre_crop(self.resized(image), self.image_size)

    def resized(self, image: torch.Tensor) -> torch.Tensor:
        """The whole of `image` at the size from which the result is cropped."""
        return self._resize(image, fit_over(tuple(image.shape[1:]), self._covering))


class SquareTransform(EvalTransform):
    """Squeeze to the input's own ratio, a square, then the centre: what a few-shot probe sees.

    Unlike in `EvalTransform`, nothing of a long image but the margin is cut off. Source: the
    authors' published code, `resize(256)|central_crop(224)`.
    """

    def resized(self, image: torch.Tensor) -> torch.Tensor:
        """The whole of `image` at the size from which the result is cropped."""
        return self._resize(image, self._covering)


def normalise(
    images: torch.Tensor,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Bytes to the model's input, on the images' device: (x / 255 - mean) / std.

    Args:
        images: uint8 (batch, 3, height, width).
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.
        dtype: of the result; the arithmetic is float32.
    """
    middle, spread = _in_bytes(tuple(mean), tuple(std), images.device)
    return (images - middle).div_(spread).to(dtype)


@lru_cache(maxsize=16)  # a copy to the device each step would make the host wait for it
def _in_bytes(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    middle = torch.tensor(mean, dtype=torch.float64).mul(255).to(device, torch.float32)
    spread = torch.tensor(std, dtype=torch.float64).mul(255).to(device, torch.float32)
    return middle.view(1, -1, 1, 1), spread.view(1, -1, 1, 1)
