"""Batched operations against torchvision's and Pillow's on one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF

from training.image_operations import (
    FILL,
    autocontrast_tables,
    cut_out,
    equalize_tables,
    fixed_tables,
    look_up,
    saturate,
    sharpen,
    transform,
)

HEIGHT, WIDTH = 37, 50


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth, noisy, dim, and of one colour."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(1, 3, 5, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(smooth, (HEIGHT, WIDTH), mode="bicubic")
    noisy = torch.rand(1, 3, HEIGHT, WIDTH, generator=generator) * 255
    flat = torch.full((1, 3, HEIGHT, WIDTH), 77.0)
    flat[:, 1] = 200
    return torch.cat([smooth, noisy, 40 + noisy / 4, flat]).clamp(0, 255).to(torch.uint8)


def by_table(images: torch.Tensor, number: int, **strength) -> torch.Tensor:
    plain = {"posterize_bits": 8, "solarize_threshold": 256, "solarize_addition": 0, "factor": 1.0}
    tables = torch.from_numpy(fixed_tables(**{**plain, **strength}))
    return look_up(images, tables[number].expand(len(images), 1, 256))


def one_by_one(function, images: torch.Tensor) -> torch.Tensor:
    return torch.stack([function(image) for image in images])


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, levels: int) -> None:
    assert ours.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= levels


def test_invert(images):
    assert torch.equal(by_table(images, 0), one_by_one(TF.invert, images))


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize(images, bits):
    ours = by_table(images, 1, posterize_bits=bits)
    assert torch.equal(ours, one_by_one(lambda image: TF.posterize(image, bits), images))


def test_posterize_keeps_at_least_one_bit_and_at_most_all(images):
    assert by_table(images, 1, posterize_bits=0).unique().tolist() == [0, 128]
    assert torch.equal(by_table(images, 1, posterize_bits=12), images)


@pytest.mark.parametrize("threshold", [0, 100, 255])
def test_solarize(images, threshold):
    ours = by_table(images, 2, solarize_threshold=threshold)
    assert torch.equal(ours, one_by_one(lambda image: TF.solarize(image, threshold), images))


def test_solarize_add(images):
    values = images.int()
    expected = torch.where(values < 128, (values + 165).clamp(max=255), values)
    assert torch.equal(by_table(images, 3, solarize_addition=165).int(), expected)


@pytest.mark.parametrize("factor", [0.1, 1.9, 3.7])
def test_contrast_is_a_blend_with_one_grey(images, factor):
    expected = (196 + factor * (images.double() - 196)).clamp(0, 255).floor()
    assert_near(by_table(images, 4, factor=factor), expected, 0)


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9, 3.7])
def test_brightness_saturation_sharpness(images, factor):
    brighter = one_by_one(lambda image: TF.adjust_brightness(image, factor), images)
    assert_near(by_table(images, 5, factor=factor), brighter, 1)
    # A grey that is rounded otherwise by one level, then stretched.
    levels = 1 + round(abs(1 - factor))
    coloured = one_by_one(lambda image: TF.adjust_saturation(image, factor), images)
    assert_near(saturate(images, factor), coloured, levels)
    sharper = one_by_one(lambda image: TF.adjust_sharpness(image, factor), images)
    assert_near(sharpen(images, factor), sharper, levels)


def test_autocontrast_spreads_each_channel(images):
    ours = look_up(images, autocontrast_tables(images))
    assert_near(ours, one_by_one(TF.autocontrast, images), 1)
    assert torch.equal(ours[3], images[3])
    assert ours[:3].amin(dim=(2, 3)).max() == 0 and ours[:3].amax(dim=(2, 3)).min() == 255


def test_equalize_is_pillows(images):
    ours = look_up(images, equalize_tables(images))
    for image, changed in zip(images, ours, strict=True):
        pillow = ImageOps.equalize(Image.fromarray(image.permute(1, 2, 0).numpy()))
        assert np.array_equal(changed.permute(1, 2, 0).numpy(), np.asarray(pillow))


def test_transform_is_pillows_to_the_nearest(images):
    generator = np.random.default_rng(0)
    maps = generator.normal(0, 0.3, (len(images), 6)) + np.array([1, 0, 0, 0, 1, 0])
    maps[:, [2, 5]] += generator.uniform(-9, 9, (len(images), 2))
    for image, changed, numbers in zip(images, transform(images, maps), maps, strict=True):
        a, b, c, d, e, f = numbers
        # Pillow's coordinates are of corners, ours of centres.
        corners = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = picture.transform(
            picture.size, Image.Transform.AFFINE, corners, fillcolor=(FILL,) * 3
        )
        same = changed.permute(1, 2, 0).numpy() == np.asarray(expected)
        assert same.mean() > 0.99  # where two pixels are equally near, either may be taken


def test_transform_by_nothing_and_by_whole_pixels(images):
    still = np.tile([1.0, 0, 0, 0, 1, 0], (len(images), 1))
    assert torch.equal(transform(images, still), images)
    right = still + np.array([0, 0, -7, 0, 0, 3])
    moved = transform(images, right)
    assert torch.equal(moved[:, :, :-3, 7:], images[:, :, 3:, :-7])
    assert (moved[:, :, :, :7] == FILL).all() and (moved[:, :, -3:] == FILL).all()


def test_cut_out_ends_at_the_border(images):
    centres = np.array([[0, 0], [HEIGHT - 1, WIDTH - 1], [10, 20], [5, 49]])
    ours = cut_out(images, centres, 6)
    for image, changed, (row, column) in zip(images, ours, centres.tolist(), strict=True):
        expected = image.clone()
        expected[:, max(0, row - 6) : row + 6, max(0, column - 6) : column + 6] = FILL
        assert torch.equal(changed, expected)
    assert torch.equal(cut_out(images, centres, 0), images)


def test_images_too_small_to_smooth_stay(images):
    assert torch.equal(sharpen(images[:, :, :2], 3.0), images[:, :, :2])
