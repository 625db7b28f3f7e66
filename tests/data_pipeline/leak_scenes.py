"""Pictures with planted copies, and searches among them."""

import io

import numpy as np
from PIL import Image

from tests.data_pipeline.sample_shards import encode


def scene(number: int, px: int = 48) -> Image.Image:
    """A picture with structure at every scale, as photographs have; seeded by its number."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((px, px, 3))
    for cells, strength in ((2, 50), (4, 40), (8, 30), (16, 15)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += strength * (np.asarray(coarse.resize((px, px), Image.BICUBIC)) / 128.0 - 1)
    return Image.fromarray(np.clip(pixels + 110, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 75) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality))).convert("RGB")


def cropped(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    return image.crop((left, top, image.width - right, image.height - bottom))
