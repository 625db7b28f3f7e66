"""Generated photographs as JPEG files of every usual kind."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from configs.data_groups import AugmentConfig
from data_pipeline.augment import Crop, TrainTransform
from data_pipeline.decode import decode_image
from data_pipeline.jpeg_crop import Box, jpeg_cropper
from tests.data_pipeline.sample_shards import encode

MAX_PIXELS = 10_000_000


needs_native = pytest.mark.skipif(
    jpeg_cropper() is None, reason="the native decoder is not built (make setup)"
)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with some noise, so that every DCT coefficient is in use; (H, W, 3)."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (3, 9, 11), np.uint8))
    # One pixel more, because torch cannot resize to a single one.
    smooth = reference.resize(small, [height + 1, width + 1])[:, :-1, :-1]
    smooth = smooth.permute(1, 2, 0).numpy().astype(int)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def kinds(height: int, width: int) -> dict[str, bytes]:
    pixels = photograph(height, width)
    grey = Image.fromarray(pixels).convert("L")
    return {
        "444": encode(pixels, "JPEG", subsampling=0),
        "422": encode(pixels, "JPEG", subsampling=1),
        "420": encode(pixels, "JPEG", subsampling=2, quality=95),
        "progressive": encode(pixels, "JPEG", progressive=True),
        "progressive-444": encode(pixels, "JPEG", progressive=True, subsampling=0),
        "grey": encode(grey, "JPEG"),
        "grey-progressive": encode(grey, "JPEG", progressive=True),
        "restarts": encode(pixels, "JPEG", restart_marker_rows=1),
        "restart-blocks": encode(pixels, "JPEG", restart_marker_blocks=3),
        "rgb": encode(pixels, "JPEG", keep_rgb=True, subsampling=0),
        "upright-exif": encode(pixels, "JPEG", exif=orientation(1)),
    }


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def random_box(rng: random.Random, height: int, width: int) -> Box:
    rows, columns = rng.randint(1, height), rng.randint(1, width)
    return Box(rng.randint(0, height - rows), rng.randint(0, width - columns), rows, columns)


def whole(data: bytes) -> torch.Tensor:
    return decode_image(bytearray(data), max_pixels=MAX_PIXELS)


# ------------------------------------------------------------------ views


def photo_views(
    data: bytes, count: int, size: tuple[int, int] = (64, 64), **augment: object
) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Per position: the view as training makes it, that of the whole image, whether cropped."""
    transform = TrainTransform(AugmentConfig(**augment), size, seed=3)
    found = []
    for position in range(count):
        source = transform.decode(bytearray(data), position, max_pixels=MAX_PIXELS)
        views = [torch.empty((3, *size), dtype=torch.uint8) for _ in range(2)]
        transform(source, position, views[0])
        transform(whole(data), position, views[1])
        found.append((views[0], views[1], isinstance(source, Crop)))
    return found
