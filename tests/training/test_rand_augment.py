"""Which operations an image gets: a function of its position, whatever shares its batch."""

import collections

import numpy as np
import pytest
import torch

from training.counter_draws import draws_key, uniform_draws
from training.image_operations import FILL
from training.rand_augment import Operation, RandAugment


def noise(count: int, side: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def drawn(seed: int, count: int, layers: int = 1) -> list[Operation]:
    """The first operation of each position."""
    draws = uniform_draws(draws_key("randaugment", seed), np.arange(count), 4 * layers)
    return [Operation(int(value * len(Operation))) for value in draws[:, 0]]


@pytest.mark.parametrize("magnitude", [0.0, 10.0, 15.0, 20.0])
def test_an_image_is_changed_alike_in_any_company(magnitude):
    images, positions = noise(60), np.arange(60) * 17 + 5
    augment = RandAugment(2, magnitude, seed=3)
    together = augment(images, positions)
    alone = torch.cat(
        [augment(images[i : i + 1], positions[i : i + 1]) for i in range(len(images))]
    )
    assert torch.equal(together, alone)
    order = np.random.default_rng(0).permutation(60)
    assert torch.equal(augment(images[order], positions[order]), together[order])


def test_threads_do_not_change_a_pixel():
    images, positions = noise(64, side=48), np.arange(64)
    augment = RandAugment(2, 15.0, seed=0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augment(images, positions)
        torch.set_num_threads(4)
        assert torch.equal(augment(images, positions), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bytes():
    images, positions = noise(256, side=96), np.arange(256)
    for magnitude in (0.0, 15.0):
        augment = RandAugment(2, magnitude, seed=0)
        on_gpu = augment(images.cuda(), positions).cpu()
        assert torch.equal(on_gpu, augment(images, positions))


def test_what_was_given_is_left_alone_and_seeds_matter():
    images = noise(16)
    kept = images.clone()
    first = RandAugment(2, 10.0, seed=0)(images, np.arange(16))
    assert torch.equal(images, kept)
    assert not torch.equal(first, RandAugment(2, 10.0, seed=1)(images, np.arange(16)))
    assert not torch.equal(first, RandAugment(2, 10.0, seed=0)(images, np.arange(16) + 1))


def test_layers_follow_each_other():
    """The second layer of two is drawn and applied as a run of its own would."""
    images, positions = noise(40), np.arange(40)
    once = RandAugment(1, 10.0, seed=0)(images, positions)
    twice = RandAugment(2, 10.0, seed=0)(images, positions)
    second = uniform_draws(draws_key("randaugment", 0), positions, 8)[:, 4]
    unchanged = np.flatnonzero((second * len(Operation)).astype(int) == Operation.INVERT)
    assert len(unchanged) > 0
    assert torch.equal(twice[unchanged], 255 - once[unchanged])


def test_what_is_drawn_is_the_same_for_good():
    """A run that goes on next year must draw what it drew before."""
    names = [operation.name for operation in drawn(0, 6, layers=2)]
    assert names == ["AUTOCONTRAST", "SHARPNESS", "COLOR", "EQUALIZE", "AUTOCONTRAST", "BRIGHTNESS"]
    second = uniform_draws(draws_key("randaugment", 0), np.arange(3), 8)[:, 4] * len(Operation)
    assert second.astype(int).tolist() == [
        Operation.SOLARIZE_ADD,
        Operation.INVERT,
        Operation.EQUALIZE,
    ]


def test_every_operation_is_as_likely():
    counts = collections.Counter(drawn(0, 16_000))
    assert set(counts) == set(Operation)
    # 1000 expected each, standard deviation 31.
    assert all(abs(count - 1000) < 125 for count in counts.values())


GREY = torch.full((1, 3, 224, 224), 50, dtype=torch.uint8)
# Values of a grey image of level 50 after one operation, by magnitude (the published formulas).
ON_GREY = {
    Operation.INVERT: {0.0: 205, 10.0: 205, 20.0: 205},
    Operation.POSTERIZE: {0.0: 0, 10.0: 48, 20.0: 50},
    Operation.SOLARIZE: {0.0: 205, 10.0: 50, 20.0: 50},
    Operation.SOLARIZE_ADD: {0.0: 50, 10.0: 160, 20.0: 255},
    Operation.CONTRAST: {0.0: 181, 10.0: 0, 20.0: 0},
    Operation.BRIGHTNESS: {0.0: 5, 10.0: 95, 20.0: 185},
    Operation.AUTOCONTRAST: {0.0: 50, 10.0: 50, 20.0: 50},
    Operation.EQUALIZE: {0.0: 50, 10.0: 50, 20.0: 50},
    Operation.COLOR: {0.0: 50, 10.0: 50, 20.0: 50},
    Operation.SHARPNESS: {0.0: 50, 10.0: 50, 20.0: 50},
}


@pytest.mark.parametrize("magnitude", [0.0, 10.0, 20.0])
def test_strengths_are_the_published_ones(magnitude):
    operations = drawn(0, 300)
    for operation, expected in ON_GREY.items():
        position = np.array([operations.index(operation)])
        changed = RandAugment(1, magnitude, seed=0)(GREY, position)
        assert changed.unique().tolist() == [expected[magnitude]], operation.name


@pytest.mark.parametrize(("magnitude", "pixels"), [(0.0, 0), (10.0, 100), (20.0, 200)])
def test_distances_are_the_published_ones_at_224_px(magnitude, pixels):
    operations = drawn(0, 300)

    def filled(operation: Operation, images: torch.Tensor = GREY) -> np.ndarray:
        position = np.array([operations.index(operation)])
        return (RandAugment(1, magnitude, seed=0)(images, position)[0, 0] == FILL).numpy()

    assert filled(Operation.TRANSLATE_X).all(axis=0).sum() == pixels
    assert filled(Operation.TRANSLATE_Y).all(axis=1).sum() == pixels
    # Half of a smaller image is as far as half of a large one.
    small = filled(Operation.TRANSLATE_X, GREY[..., :112, :112])
    assert small.all(axis=0).sum() == pixels // 2
    # The last row of a sheared image has moved by 0.3 x magnitude / 10 of its distance.
    assert abs(filled(Operation.SHEAR_X)[223].sum() - 223 * 0.03 * magnitude) <= 1
    assert abs(filled(Operation.SHEAR_Y)[:, 223].sum() - 223 * 0.03 * magnitude) <= 1
    reach = 4 * magnitude
    square = filled(Operation.CUTOUT)
    assert square.any(axis=0).sum() <= 2 * reach and square.any(axis=1).sum() <= 2 * reach
    assert square.sum() >= reach * reach


def test_rotation_is_about_the_centre():
    operations = drawn(0, 300)
    image = torch.zeros(1, 3, 225, 225, dtype=torch.uint8)
    image[..., 112, 112] = 255  # the centre
    image[..., 112, 212] = 254  # 100 to the right
    position = np.array([operations.index(Operation.ROTATE)])
    turned = RandAugment(1, 10.0, seed=0)(image, position)[0, 0]
    assert turned[112, 112] == 255
    row, column = torch.nonzero(turned == 254)[0].tolist()
    angle = np.degrees(np.arctan2(row - 112, column - 112))
    assert abs(angle) == pytest.approx(30, abs=0.6)
