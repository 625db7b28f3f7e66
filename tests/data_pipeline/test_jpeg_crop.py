"""Crop-only decoding gives the pixels of decoding everything and cutting."""

import io
import random

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from data_pipeline.jpeg_crop import Box, covering_eighths, jpeg_cropper, scaled
from data_pipeline.resizing import Resizing
from tests.data_pipeline.jpeg_photographs import kinds, needs_native, random_box, whole


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("size", [(97, 131), (16, 200), (200, 9), (1, 1), (33, 32)])
def test_at_full_scale_a_crop_is_the_cut_of_the_whole(kind: str, size: tuple[int, int]) -> None:
    data = bytearray(kinds(*size)[kind])
    cropper, rng = jpeg_cropper(), random.Random(5)
    assert cropper.size(data) == size
    image = whole(data)
    edges = [Box(0, 0, *size), Box(size[0] - 1, size[1] - 1, 1, 1), Box(0, 0, 1, 1)]
    for box in edges + [random_box(rng, *size) for _ in range(60)]:
        assert torch.equal(cropper.crop(data, box), box.cut(image)), box


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_at_a_smaller_scale_a_crop_is_the_cut_of_the_whole_at_that_scale(
    kind: str, eighths: int
) -> None:
    size = (160, 240)
    data = bytearray(kinds(*size)[kind])
    cropper, rng = jpeg_cropper(), random.Random(5)
    small = cropper.crop(data, Box(0, 0, *size), eighths)
    assert small.shape[1:] == (size[0] * eighths // 8, size[1] * eighths // 8)
    for _ in range(60):
        box = random_box(rng, *size)
        part = scaled(box, eighths)
        if min(part.height, part.width) > 0:
            assert torch.equal(cropper.crop(data, box, eighths), part.cut(small)), box


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_at_a_smaller_scale_pixels_are_near_the_average_of_those_they_cover(
    kind: str, eighths: int
) -> None:
    """The mean over each square of pixels is what a reduced inverse DCT stands for."""
    size = (160, 240)
    data = bytearray(kinds(*size)[kind])
    small = jpeg_cropper().crop(data, Box(0, 0, *size), eighths)
    averaged = torch.nn.functional.avg_pool2d(whole(data).float()[None], 8 // eighths)[0]
    difference = (small.float() - averaged).abs().mean()
    # 4:2:2 loses half of its chroma columns: libjpeg reduces both directions of a component alike.
    assert difference < (15 if kind == "422" else 5)


def test_the_scale_is_the_smallest_that_covers() -> None:
    assert covering_eighths(Box(0, 0, 224, 224), (224, 224)) == 8
    assert covering_eighths(Box(0, 0, 447, 900), (224, 224)) == 4  # 447 / 2 rounds up
    assert covering_eighths(Box(1, 0, 446, 900), (224, 224)) == 8
    assert covering_eighths(Box(0, 0, 1000, 900), (224, 224)) == 2
    assert covering_eighths(Box(0, 0, 2000, 4000), (224, 224)) == 1
    rng = random.Random(1)
    for _ in range(500):
        box = random_box(rng, 3000, 3000)
        part = scaled(box, covering_eighths(box, (100, 120)))
        if box.height >= 100 and box.width >= 120:
            assert part.height >= 100 and part.width >= 120


def test_resizing_without_antialias_takes_single_pixels() -> None:
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    smooth = Resizing("bilinear", True)(stripes, (16, 16))
    assert (smooth[:, :, 2:-2].float() - 127.5).abs().max() < 3
    assert torch.equal(
        Resizing("bilinear", False)(stripes, (32, 32)),
        reference.resize(stripes, [32, 32], antialias=False),
    )


def test_files_of_pillow_are_what_these_tests_say() -> None:
    """Guards the kinds above: each must really be of its kind."""
    for kind, data in kinds(40, 40).items():
        with Image.open(io.BytesIO(data)) as image:
            assert bool(image.info.get("progressive")) == ("progressive" in kind)
            assert image.mode == ("L" if "grey" in kind else "RGB")
        assert (b"\xff\xdd" in data) == ("restart" in kind)
