"""What a training or evaluation image looks like: crop, resize, flip on uint8; then normalise.

Random choices are a function of (seed, position), so an image looks the same at any world size and
number of threads. Resizing is bicubic with antialiasing, on bytes, as timm's default for ViTs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.functional import interpolate

from configs.errors import RefusedInput
from configs.groups import AugmentConfig

# "Inception" normalisation, values in [-1, 1]: what the ViT authors' code and weights use.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_CROP_TRIES = 10
_DRAWS_PER_POSITION = 64
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class PositionDraws:
    """Uniform numbers that belong to (seed, position): SplitMix64 begun at a counter.

    Draw k at position p is the SplitMix64 output of state key + (64 p + k + 1) x golden, where key
    is 64 bits of BLAKE2b over "augment:seed". A keyed numpy generator would cost more than
    decoding a small image does.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """

    __slots__ = ("_state",)

    def __init__(self, key: int, position: int) -> None:
        """Stand before the first draw of a position; `key` is `draws_key(seed)`."""
        self._state = (key + position * _DRAWS_PER_POSITION * _GOLDEN) & _MASK

    def uniform(self) -> float:
        """Next number in [0, 1), from 53 bits."""
        self._state = z = (self._state + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Next integer in 0 .. count-1."""
        return int(self.uniform() * count)


def draws_key(seed: int) -> int:
    """The 64 bits that distinguish one seed's draws from another's."""
    return int.from_bytes(hashlib.blake2b(f"augment:{seed}".encode(), digest_size=8).digest())


class TrainTransform:
    """Random crop, resize and flip of one image; see `AugmentConfig`.

    Args:
        augment: which crop, its bounds, and whether to flip.
        image_size: (height, width) of the result, in pixels.
        seed: of the random choices.

    Raises:
        RefusedInput: `augment.resize_px` is smaller than the result.
    """

    def __init__(self, augment: AugmentConfig, image_size: tuple[int, int], seed: int) -> None:
        """Fix what does not depend on the image."""
        self.augment = augment
        self.image_size = image_size
        self._key = draws_key(seed)
        self._log_ratio_max = math.log(augment.crop_ratio_max)
        resize_px = None if augment.crop == "area" else augment.resize_px
        self._evaluation = EvalTransform(image_size, resize_px, option="augment.resize_px")

    def __call__(self, image: torch.Tensor, position: int, out: torch.Tensor) -> None:
        """Write the view of `image` (3, H, W) at `position` into `out` (3, height, width)."""
        draws = PositionDraws(self._key, position)
        if self.augment.crop == "area":
            changed = resize(self._crop_area(image, draws), self.image_size)
        elif self.augment.crop == "resize":
            changed = self._crop_resized(image, draws)
        else:
            changed = self._evaluation.view(image)
        # Drawn last but always, so that switching flips off leaves the crops as they were.
        if self.augment.flip and draws.uniform() < 0.5:
            changed = changed.flip(-1)
        out.copy_(changed)

    def _crop_area(self, image: torch.Tensor, draws: PositionDraws) -> torch.Tensor:
        """Random area and aspect ratio, as "Going deeper with convolutions" (2014), section 6."""
        _, height, width = image.shape
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
                return image[:, top : top + crop_height, left : left + crop_width]
        return self._centre_within_ratio(image)

    def _centre_within_ratio(self, image: torch.Tensor) -> torch.Tensor:
        """Largest centred crop whose ratio is allowed: what is left for very long images."""
        _, height, width = image.shape
        widest = self.augment.crop_ratio_max
        crop_width = max(1, min(width, round(height * widest)))
        crop_height = max(1, min(height, round(width * widest)))
        return centre_crop(image, (crop_height, crop_width))

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
        option: what a person calls `resize_px`, for the message when it is refused.

    Raises:
        RefusedInput: `resize_px` is smaller than the result.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        resize_px: int | None = None,
        *,
        option: str = "eval_resize_px",
    ) -> None:
        """Check that the result fits into what is resized."""
        self.image_size = image_size
        resize_px = resize_px or default_resize_px(image_size)
        self._covering = covering_size(image_size, resize_px, option)

    def __call__(self, image: torch.Tensor, out: torch.Tensor) -> None:
        """Write the view of `image` (3, H, W) into `out` (3, height, width)."""
        out.copy_(self.view(image))

    def view(self, image: torch.Tensor) -> torch.Tensor:
        """The resized centre of `image`, uint8 (3, height, width)."""
        return centre_crop(self.resized(image), self.image_size)

    def resized(self, image: torch.Tensor) -> torch.Tensor:
        """The whole of `image` at the size from which the result is cropped."""
        return resize(image, fit_over(tuple(image.shape[1:]), self._covering))


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


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialiasing on uint8 (3, H, W); the image itself where the size is equal."""
    if tuple(image.shape[1:]) == size:
        return image
    return interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]


def centre_crop(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Middle of `image` (3, H, W); both sides must be at least those of `size`."""
    top = round((image.shape[1] - size[0]) / 2)
    left = round((image.shape[2] - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


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
