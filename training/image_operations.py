"""Operations on batches of images as bytes, each image with its own strength.

All give uint8 (batch, 3, height, width). Arithmetic is on whole numbers, or on floating point
numbers one rounding at a time, so the result is the same on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FILL = 128
"""What stands where a moved or cut image has no pixels."""

# The published code blends towards pixels / 256 in place of the mean grey it means to use: 196 for
# its 224 px images. That value is kept, at every size.
_CONTRAST_GREY = 224 * 224 // 256
_FIXED_POINT_BITS = 16
# Red, green and blue in grey: 0.2989, 0.587, 0.114, times 255.5 / 255 so that what is cut off is
# rounded to the nearest (TensorFlow's way with bytes); in 1 / 65536.
_LUMA = (19627, 38545, 7486)


def to_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Numbers of the host as a tensor on `device`; neither waits for the other.

    Through pinned memory: copies from any other may make the host wait for a GPU.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def look_up(images: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Replace every byte by its entry in a table.

    Args:
        images: uint8 (batch, 3, height, width).
        tables: uint8 (batch, 3 or 1, 256), of each image and channel or of each image.
    """
    batch, channels = images.shape[:2]
    bytes_of = images.flatten(2).long()
    return tables.expand(batch, channels, 256).gather(2, bytes_of).view_as(images)


def fixed_tables(
    *, posterize_bits: int, solarize_threshold: int, solarize_addition: int, factor: float
) -> NDArray[np.uint8]:
    """Tables, uint8 (6, 256): invert, posterize, solarize, solarize-add, contrast, brightness.

    Args:
        posterize_bits: high bits that are kept, at least one.
        solarize_threshold: bytes from here on are inverted.
        solarize_addition: added to bytes below 128.
        factor: of contrast and brightness; 1 changes nothing, 0 gives grey or black.
    """
    value = np.arange(256)
    dropped = min(max(8 - posterize_bits, 0), 7)
    tables = (
        255 - value,
        value >> dropped << dropped,
        np.where(value < solarize_threshold, value, 255 - value),
        np.where(value < 128, value + solarize_addition, value),
        _CONTRAST_GREY + factor * (value - _CONTRAST_GREY),
        factor * value,
    )
    return np.stack([np.clip(table, 0, 255).astype(np.uint8) for table in tables])


def autocontrast_tables(images: torch.Tensor) -> torch.Tensor:
    """Tables, uint8 (batch, 3, 256), that spread each channel over 0 to 255."""
    pixels = images.flatten(2)
    low = pixels.amin(dim=2, keepdim=True).int()
    spread = pixels.amax(dim=2, keepdim=True).int() - low
    value = torch.arange(256, dtype=torch.int32, device=images.device)
    stretched = (value - low).mul_(255).div_(spread.clamp(min=1), rounding_mode="floor")
    return torch.where(spread > 0, stretched, value).clamp_(0, 255).to(torch.uint8)


def equalize_tables(images: torch.Tensor) -> torch.Tensor:
    """Tables, uint8 (batch, 3, 256), that make each channel's bytes about equally frequent.

    Source: the arithmetic of Pillow's ImageOps.equalize, which the published code follows.
    """
    pixels = images.flatten(2).long()
    rows = torch.arange(pixels.shape[0] * pixels.shape[1], device=images.device) * 256
    places = (pixels + rows.view(*pixels.shape[:2], 1)).flatten()
    # Flat, because that is where there is a deterministic kernel for a GPU.
    counts = torch.zeros(len(rows) * 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    counts = counts.view(*pixels.shape[:2], 256)
    of_highest = counts.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (pixels.shape[2] - of_highest).div(255, rounding_mode="floor")
    below = counts.cumsum(dim=2) - counts
    spread = (below + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    value = torch.arange(256, device=images.device)
    return torch.where(step > 0, spread, value).to(torch.uint8)


def saturate(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from grey by `factor`: 1 changes nothing, 0 gives a grey image."""
    red, green, blue = images.int().unbind(dim=1)
    grey = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]) >> _FIXED_POINT_BITS
    return _blend(grey[:, None].to(torch.uint8), images, factor)


def sharpen(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from a smoothed image by `factor`; the outermost pixels stay as they are."""
    if min(images.shape[-2:]) < 3:
        return images
    pixels = images.short()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    centre = pixels[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    # Weights 5 in the middle and 1 around it, over 13.
    smooth[:, :, 1:-1, 1:-1] = (around + 4 * centre).div(13, rounding_mode="floor").to(torch.uint8)
    return _blend(smooth, images, factor)


def _blend(from_images: torch.Tensor, images: torch.Tensor, factor: float) -> torch.Tensor:
    start = from_images.float()
    return (start + (images.float() - start) * factor).clamp_(0, 255).to(torch.uint8)


def transform(images: torch.Tensor, maps: NDArray[np.float64]) -> torch.Tensor:
    """Move pixels along affine maps, to the nearest; what comes from outside is `FILL`.

    Args:
        images: uint8 (batch, 3, height, width).
        maps: (batch, 6): a, b, c, d, e, f; output pixel (x, y) shows (ax + by + c, dx + ey + f).
    """
    height, width = images.shape[-2:]
    # Fixed point, as Pillow's: where two source pixels are about equally near, all devices agree.
    scaled = np.rint(maps * (1 << _FIXED_POINT_BITS)).astype(np.int64)
    on_device = to_device(scaled, images.device)
    a, b, c, d, e, f = on_device[:, :, None, None].unbind(dim=1)
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    half = 1 << (_FIXED_POINT_BITS - 1)
    source_x = (a * x + b * y + c + half) >> _FIXED_POINT_BITS
    source_y = (d * x + e * y + f + half) >> _FIXED_POINT_BITS
    is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    place = source_y.clamp_(0, height - 1) * width + source_x.clamp_(0, width - 1)
    moved = images.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, 3, -1))
    return torch.where(is_inside[:, None], moved.view_as(images), FILL)


def cut_out(images: torch.Tensor, centres: NDArray[np.int64], reach: int) -> torch.Tensor:
    """Fill a square of each image, which ends at the image's borders, with `FILL`.

    Args:
        images: uint8 (batch, 3, height, width).
        centres: (batch, 2): row and column.
        reach: the square's pixels from its centre: `reach` before it, `reach` - 1 behind it.
    """
    height, width = images.shape[-2:]
    on_device = to_device(centres, images.device)
    row = torch.arange(height, device=images.device) - on_device[:, :1]
    column = torch.arange(width, device=images.device) - on_device[:, 1:]
    rows, columns = ((place >= -reach) & (place < reach) for place in (row, column))
    is_cut = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(is_cut, FILL, images)
