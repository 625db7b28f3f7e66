"""Views of images: torchvision is the reference; random choices are counted or pinned."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from data_pipeline.augment import EvalTransform, TrainTransform, normalise
from data_pipeline.position_draws import PositionDraws, draws_key
from data_pipeline.resizing import fit_over

GOLDEN_KEY = 18153804199761177493
GOLDEN_DRAW = 0.31468969866235874


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pixels, so that a shift by one shows."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8, generator=generator)
    return reference.resize(small, [height, width])


def coordinates(height: int, width: int) -> torch.Tensor:
    """Channel 0 holds the row of a pixel, channel 1 its column (both below 256)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows]).to(torch.uint8)


def train_view(
    image: torch.Tensor, position: int, size: tuple[int, int], seed: int = 0, **augment: object
) -> torch.Tensor:
    out = torch.full((3, *size), 7, dtype=torch.uint8)
    TrainTransform(AugmentConfig(**augment), size, seed)(image, position, out)
    return out


def eval_view(image: torch.Tensor, size: tuple[int, int], resize_px: int | None) -> torch.Tensor:
    out = torch.full((3, *size), 7, dtype=torch.uint8)
    EvalTransform(size, resize_px)(image, out)
    return out


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 333), (64, 64), (8, 8), (32, 32), (33, 1000)]
)
@pytest.mark.parametrize(("size", "resize_px"), [(48, 55), (224, 256), (32, 32)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(
    height: int, width: int, size: int, resize_px: int
) -> None:
    image = picture(height, width)
    expected = v2.Compose(
        [
            v2.Resize(resize_px, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
        ]
    )(image)
    assert torch.equal(eval_view(image, (size, size), resize_px), expected)


def test_default_resize_is_8_over_7() -> None:
    image = picture(300, 400)
    assert torch.equal(eval_view(image, (224, 224), None), eval_view(image, (224, 224), 256))


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = picture(40, 40)
    assert torch.equal(eval_view(image, (40, 40), 40), image)
    assert torch.equal(eval_view(image, (32, 32), 40), image[:, 4:36, 4:36])


def test_inputs_that_are_not_square_are_covered() -> None:
    """Rows are stretched by less than columns would need, so the columns decide."""
    image = picture(100, 100)
    view = eval_view(image, (32, 96), 32)
    expected = reference.resize(image, [96, 96], v2.InterpolationMode.BICUBIC, antialias=True)[
        :, 32:64
    ]
    assert torch.equal(view, expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_over_covers_and_keeps_the_ratio(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        size = tuple(rng.integers(1, 900, 2).tolist())
        need = tuple(rng.integers(1, 400, 2).tolist())
        got = fit_over(size, need)
        assert got[0] >= need[0] and got[1] >= need[1]
        assert got[0] == need[0] or got[1] == need[1]
        scale = max(need[0] / size[0], need[1] / size[1])
        assert abs(got[0] - size[0] * scale) <= 1 and abs(got[1] - size[1] * scale) <= 1


def test_a_resize_below_the_input_is_refused() -> None:
    with pytest.raises(RefusedInput, match=r"eval_resize_px = 47 .* at least 48"):
        EvalTransform((48, 48), 47)
    with pytest.raises(RefusedInput, match=r"augment\.resize_px = 40 "):
        TrainTransform(AugmentConfig(crop="resize", resize_px=40), (48, 48), 0)


def test_draws_are_splitmix64() -> None:
    """The published sequence of state 1234567."""
    draws = PositionDraws(1234567, 0)
    for expected in (6457827717110365317, 3203168211198807973, 9817491932198370423):
        assert draws.uniform() == (expected >> 11) * 2.0**-53


def test_draws_are_pinned_and_differ_by_seed_and_position() -> None:
    """Any change here changes what a resumed run sees."""
    assert draws_key(0) == GOLDEN_KEY
    assert PositionDraws(draws_key(0), 5).uniform() == GOLDEN_DRAW
    first = {PositionDraws(draws_key(s), p).uniform() for s in range(20) for p in range(50)}
    assert len(first) == 1000


def test_draws_are_uniform_over_positions() -> None:
    """Draw k over consecutive positions: mean, spread, and no correlation between draws."""
    values = np.array(
        [
            [draws.uniform() for _ in range(5)]
            for draws in (PositionDraws(draws_key(3), p) for p in range(20_000))
        ]
    )
    assert np.abs(values.mean(0) - 0.5).max() < 0.01
    assert np.abs(values.var(0) - 1 / 12).max() < 0.002
    correlation = np.corrcoef(np.hstack([values[:-1], values[1:]]).T) - np.eye(10)
    assert np.abs(correlation).max() < 0.03


def boxes(height: int, width: int, count: int, **augment: object) -> np.ndarray:
    """(count, 4) top, left, height, width of area crops, without flips."""
    transform = TrainTransform(AugmentConfig(flip=False, **augment), (8, 8), seed=1)
    draws = (PositionDraws(transform._key, position) for position in range(count))
    return np.array([transform.area_box((height, width), each) for each in draws])


def test_area_crops_have_the_stated_distribution() -> None:
    top, left, height, width = boxes(200, 200, 4000, crop_area_min=0.1, crop_area_max=0.5).T
    share, log_ratio = height * width / 200**2, np.log(width / height)
    assert 0.09 < share.min() and share.max() < 0.51
    assert abs(share.mean() - 0.3) < 0.01
    bound = math.log(4 / 3)
    assert np.abs(log_ratio).max() < bound + 0.05
    assert abs(log_ratio.mean()) < 0.02
    assert abs(log_ratio.var() - (2 * bound) ** 2 / 12) < 0.003
    assert (top + height).max() == 200 and (left + width).max() == 200
    assert top.min() == 0 and left.min() == 0
    fits = top / np.maximum(200 - height, 1)
    assert abs(fits.mean() - 0.5) < 0.02


def test_area_crop_is_torchvisions_resized_crop() -> None:
    image = picture(200, 150)
    for position in range(5):
        top, left, height, width = boxes(200, 150, position + 1)[position].tolist()
        expected = reference.resized_crop(
            image, top, left, height, width, [64, 48], v2.InterpolationMode.BICUBIC, antialias=True
        )
        view = train_view(image, position, (64, 48), seed=1, flip=False)
        assert torch.equal(view, expected)


def test_a_long_image_falls_back_to_its_centre_within_the_ratio() -> None:
    top, left, height, width = boxes(4, 250, 50, crop_area_min=0.9).T
    assert set(height.tolist()) == {4}
    assert set(width.tolist()) == {5}  # 4/3 of the height
    assert set(left.tolist()) == {122}
    top, left, height, width = boxes(250, 4, 50, crop_area_min=0.9).T
    assert (set(top.tolist()), set(height.tolist()), set(width.tolist())) == ({122}, {5}, {4})


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_tiny_images_still_give_a_view(size: tuple[int, int]) -> None:
    for position in range(20):
        for crop in ("area", "resize", "none"):
            view = train_view(
                torch.full((3, *size), 9, dtype=torch.uint8), position, (8, 8), crop=crop
            )
            assert view.unique().tolist() == [9]


@pytest.mark.parametrize("source", [8, 32])
def test_small_images_are_enlarged(source: int) -> None:
    image = picture(source, source)
    whole = {"crop_area_min": 1.0, "crop_ratio_max": 1.0, "flip": False}
    expected = reference.resize(image, [48, 48], v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(train_view(image, 3, (48, 48), **whole), expected)


def test_resize_crop_takes_every_offset_of_the_resized_image() -> None:
    """The image has the resized size already, so each view must be a cut of it."""
    image = coordinates(12, 14)
    seen = set()
    for position in range(400):
        view = train_view(image, position, (10, 10), crop="resize", resize_px=12, flip=False)
        top, left = int(view[0, 0, 0]), int(view[1, 0, 0])
        assert torch.equal(view, image[:, top : top + 10, left : left + 10])
        seen.add((top, left))
    assert seen == {(top, left) for top in range(3) for left in range(5)}


def test_no_crop_is_the_evaluation_view() -> None:
    image = picture(60, 50)
    view = train_view(image, 1, (32, 32), crop="none", flip=False)
    assert torch.equal(view, eval_view(image, (32, 32), None))


def test_half_of_the_images_are_flipped_and_flips_leave_crops_alone() -> None:
    image, flips = picture(40, 40), 0
    for position in range(400):
        plain = train_view(image, position, (16, 16), flip=False)
        view = train_view(image, position, (16, 16), flip=True)
        flipped = torch.equal(view, plain.flip(-1))
        assert flipped or torch.equal(view, plain)
        flips += flipped
    assert 160 < flips < 240


def test_views_depend_on_seed_and_position_only() -> None:
    image = picture(50, 70)
    first = [train_view(image, position, (24, 24), seed=2) for position in range(6)]
    again = [train_view(image, position, (24, 24), seed=2) for position in reversed(range(6))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    other = [train_view(image, position, (24, 24), seed=3) for position in range(6)]
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({view.numpy().tobytes() for view in first}) == 6


def test_a_strided_image_gives_the_same_view() -> None:
    """Decoders hand over channels-last memory."""
    image = picture(50, 70)
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for crop in ("area", "resize", "none"):
        assert torch.equal(
            train_view(image, 4, (24, 24), crop=crop), train_view(strided, 4, (24, 24), crop=crop)
        )


def test_normalise_is_torchvisions() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = reference.normalize(images.to(torch.float32) / 255, list(mean), list(std))
    torch.testing.assert_close(normalise(images, mean, std), expected, atol=1e-6, rtol=1e-6)


def test_default_normalisation_spans_minus_one_to_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert normalise(images).flatten().tolist() == [-1.0, 1.0] * 3
    half = normalise(images, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.flatten().tolist() == [-1.0, 1.0] * 3
