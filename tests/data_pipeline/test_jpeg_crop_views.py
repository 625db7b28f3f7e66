"""Views for training by crop-only decoding, at full scale and at smaller ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from configs.data_groups import AugmentConfig
from data_pipeline.augment import TrainTransform
from data_pipeline.jpeg_crop import write_planes
from tests.data_pipeline.jpeg_photographs import (
    MAX_PIXELS,
    kinds,
    needs_native,
    photo_views,
    photograph,
)


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_without_dct_scaling_views_are_exactly_those_of_whole_images(
    kind: str, interpolation: str, antialias: bool
) -> None:
    options = {"interpolation": interpolation, "antialias": antialias, "dct_scaling": False}
    views = photo_views(kinds(150, 211)[kind], 12, **options)
    assert all(cropped and torch.equal(view, expected) for view, expected, cropped in views)


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (8, 300)])
@pytest.mark.parametrize("kind", ["420", "grey"])
def test_tiny_images_give_a_view(kind: str, size: tuple[int, int]) -> None:
    views = photo_views(kinds(*size)[kind], 10, (16, 16))
    assert all(cropped and torch.equal(view, expected) for view, expected, cropped in views)


@needs_native
@pytest.mark.parametrize("kind", ["420", "progressive", "grey"])
def test_with_dct_scaling_views_differ_a_little(kind: str) -> None:
    views = photo_views(kinds(700, 900)[kind], 20, crop_area_min=0.2)
    changed = 0
    for view, expected, cropped in views:
        assert cropped
        difference = (view.float() - expected.float()).abs()
        assert difference.mean() < 4
        changed += bool(difference.max() > 0)
    assert changed > 10  # or nothing was decoded at a smaller scale


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pixels_are_the_same_from_any_number_of_threads(threads: int) -> None:
    data = list(kinds(300, 280).values())
    transform = TrainTransform(AugmentConfig(), (48, 48), seed=3)

    def view(position: int) -> bytes:
        out = torch.empty((3, 48, 48), dtype=torch.uint8)
        file = bytearray(data[position % len(data)])
        transform(transform.decode(file, position, max_pixels=MAX_PIXELS), position, out)
        return out.numpy().tobytes()

    expected = [view(position) for position in range(60)]
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(view, range(60), timeout=60)) == expected


@needs_native
@pytest.mark.parametrize("crop", ["resize", "none"])
def test_other_crops_decode_the_whole_image(crop: str) -> None:
    for view, expected, cropped in photo_views(kinds(90, 100)["420"], 5, crop=crop):
        assert not cropped and torch.equal(view, expected)


# ------------------------------------------------------------------ into the batch


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (64, 48), (16, 1), (2, 33), (3, 16)])
def test_planes_are_written_as_torch_writes_them(mirror: bool, size: tuple[int, int]) -> None:
    planar = torch.from_numpy(photograph(*size)).permute(2, 0, 1)
    for pixels in (planar, planar.contiguous(), planar.mT.contiguous().mT):
        batch = torch.full((3, 3, *size), 7, dtype=torch.uint8)
        write_planes(pixels, mirror, batch[1])
        assert torch.equal(batch[1], pixels.flip(-1) if mirror else pixels)
        assert batch[0].unique().tolist() == batch[2].unique().tolist() == [7]
