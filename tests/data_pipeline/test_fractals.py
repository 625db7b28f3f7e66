import io

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from configs.errors import RefusedInput
from data_pipeline.sources import FractalOptions, FractalSource
from data_pipeline.sources.fractals import class_system
from data_pipeline.sources.iterated_functions import (
    Systems,
    chaos_game,
    draw_density,
    random_system,
)


def pixels_of(source: FractalSource, rows) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(image.read()))) for image in source.images(rows)]
    )


def one_map(num_copies: int = 3) -> Systems:
    """A system whose maps are all the same, so that its attractor is their fixed point."""
    angles = np.tile([[[0.3, -1.1]]], (1, num_copies, 1))
    scales = np.tile([[[0.5, -0.2]]], (1, num_copies, 1))
    shifts = np.tile([[[0.7, -0.4]]], (1, num_copies, 1))
    return Systems(angles, scales, shifts)


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_matrices_are_the_product_they_stand_for():
    system = random_system(np.random.default_rng(1))
    for row, (angle, turn), scales, shift in zip(
        system.matrices()[0], system.angles[0], system.scales[0], system.shifts[0], strict=True
    ):
        expected = rotation(angle) @ np.diag(scales) @ rotation(turn)
        assert_allclose(row[:4].reshape(2, 2), expected, atol=1e-12)
        assert_allclose(row[4:], shift)


def test_every_map_contracts_also_when_varied():
    rng = np.random.default_rng(2)
    for _ in range(50):
        system = random_system(rng).varied(rng, 0.3)
        linear = system.matrices()[0, :, :4].reshape(-1, 2, 2)
        assert np.linalg.norm(linear, ord=2, axis=(1, 2)).max() < 0.93


def test_weights_are_shares_of_the_area():
    system = Systems(
        np.zeros((1, 4, 2)),
        np.array([[[0.5, 0.5], [0.5, -0.5], [1e-3, 0.5], [0.0, 0.0]]]),
        np.zeros((1, 4, 2)),
    )
    assert_allclose(system.weights(), [[0.25 / 0.52, 0.25 / 0.52, 0.02 / 0.52, 0.0]])


def test_the_chaos_game_ends_on_the_attractor():
    matrix = rotation(0.3) @ np.diag([0.5, -0.2]) @ rotation(-1.1)
    fixed_point = np.linalg.solve(np.eye(2) - matrix, [0.7, -0.4])
    points = chaos_game(one_map(), 100, np.random.default_rng(3))
    assert points.shape[:2] == (2, 1) and points.shape[2] >= 100
    assert points.dtype == np.float32
    # 0.5^12 of the way from the origin is left after the burn-in.
    assert_allclose(points[:, 0].T, np.tile(fixed_point, (points.shape[2], 1)), atol=5e-4)


def test_maps_are_chosen_by_their_weights():
    # Both maps shrink everything to a point, each to its own, so a point tells which was chosen.
    system = Systems(
        np.zeros((1, 2, 2)),
        np.array([[[0.1, 0.3], [0.1, 0.1]]]),  # areas 0.03 and 0.01, which the floor lifts to 0.02
        np.array([[[1.0, 0.0], [-1.0, 0.0]]]),
    )
    x = chaos_game(system, 50_000, np.random.default_rng(4))[0]
    assert abs((x > 0).mean() - 0.6) < 0.01


def test_density_counts_points_in_cells():
    # Corners and one point in the middle of the second cell, for a picture of 1 x 4 cells.
    points = np.array([[[0.0, 4.0, 1.5, 1.5]], [[0.0, 1.0, 0.5, 0.5]]], np.float32)
    density = draw_density(points, 1, 4)
    assert density.shape == (1, 1, 4)
    assert_allclose(density[0, 0], 1 - np.exp(-np.array([1, 2, 0, 1]) * 3 / 4), rtol=1e-6)


def test_systems_drawn_together_are_those_drawn_alone():
    both = [class_system(0, label) for label in (0, 1)]
    joined = Systems(
        *(np.concatenate([getattr(s, f) for s in both]) for f in ("angles", "scales", "shifts"))
    )
    points = chaos_game(joined, 500, np.random.default_rng(5))
    density = draw_density(points, 16, 16)
    for number in range(2):
        assert_array_equal(density[number], draw_density(points[:, number : number + 1], 16, 16)[0])


def test_images_depend_on_seed_split_class_and_number_only():
    options = FractalOptions(classes=3, images_per_class=2, px=16)
    source = FractalSource("train", options)
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    images = pixels_of(source, np.arange(6))
    assert images.shape == (6, 16, 16) and images.dtype == np.uint8
    assert_array_equal(pixels_of(FractalSource("train", options), np.array([4, 1])), images[[4, 1]])
    assert len({image.tobytes() for image in images}) == 6
    # More classes and images leave those before them as they are.
    more = FractalSource("train", FractalOptions(classes=4, images_per_class=3, px=16))
    assert_array_equal(pixels_of(more, np.array([0, 1, 3, 4, 6, 7])), images)
    for other in (
        FractalSource("val", options),
        FractalSource("train", FractalOptions(classes=3, images_per_class=2, px=16, seed=1)),
    ):
        assert not np.array_equal(pixels_of(other, np.arange(6)), images)
        assert other.fingerprint() != source.fingerprint()


def test_classes_can_be_told_apart_on_the_other_split():
    options = FractalOptions(classes=10, images_per_class=10, px=16)
    train, val = (FractalSource(split, options) for split in ("train", "val"))
    seen, unseen = (pixels_of(s, np.arange(100)).reshape(100, -1) / 255 for s in (train, val))
    means = seen.reshape(10, 10, -1).mean(axis=1)
    distances = ((unseen[:, None] - means) ** 2).sum(axis=-1)
    # Measured: 1.0; chance is 0.1. No image is the same as another.
    assert (distances.argmin(axis=1) == val.labels).mean() > 0.9
    assert len(np.unique(np.concatenate([seen, unseen]), axis=0)) == 200


def test_jpeg_pictures_are_as_costly_as_photographs():
    options = FractalOptions(classes=2, images_per_class=3, px=500, image_format="jpeg")
    files = [image.read() for image in FractalSource("train", options).images(np.arange(6))]
    images = [Image.open(io.BytesIO(data)) for data in files]
    assert {image.size for image in images} <= {(500, 375), (375, 500)}
    assert {image.format for image in images} == {"JPEG"}
    assert 80_000 < np.mean([len(data) for data in files]) < 130_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "--fractal-classes 1: give at least 2"),
        ({"images_per_class": 0}, "--fractal-images-per-class 0: give at least 1"),
        ({"px": 4}, "--fractal-px 4: give at least 8"),
        ({"seed": -1}, "--fractal-seed -1: give at least 0"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(RefusedInput, match=message):
        FractalOptions(**wrong)
