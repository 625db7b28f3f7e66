"""Perceptual hashes, views and their alignment: what the search is made of."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.leaks.perceptual_hash import MAX_BITS, HashIndex, hash_codes
from data_pipeline.leaks.pixel_check import pixel_distances
from data_pipeline.leaks.views import placements, resampling, view_spans
from tests.data_pipeline.leak_scenes import cropped, scene

pytestmark = pytest.mark.timeout(200)


def test_the_index_finds_what_comparing_with_everything_finds():
    rng = np.random.default_rng(0)
    entries = rng.integers(0, 256, (3000, 8), dtype=np.uint8)
    flips = np.zeros((200, 64), np.uint8)
    for number in range(200):  # 0 to 19 bits, so on both sides of the limit
        flips[number, rng.permutation(64)[: number % 20]] = 1
    queries = entries[:200] ^ np.packbits(flips, axis=1)
    index = HashIndex()
    index.add(entries)
    found = set(zip(*(values.tolist() for values in index.search(queries)), strict=True))
    bits = np.bitwise_count(queries[:, None] ^ entries[None]).sum(axis=2)
    near = np.argwhere(bits <= MAX_BITS).tolist()
    assert found == {(query, entry, int(bits[query, entry])) for query, entry in near}
    assert len(near) >= 120


def thumbnails(*images: Image.Image) -> np.ndarray:
    small = [np.asarray(image.resize((32, 32), Image.BILINEAR)) for image in images]
    return np.stack(small).transpose(0, 3, 1, 2)


def test_codes_do_not_change_with_brightness_and_contrast():
    pixels = thumbnails(*(scene(number) for number in range(20))).astype(np.float32)
    dim = (pixels * 0.5 + 30).astype(np.uint8)
    bits = np.bitwise_count(hash_codes(pixels.astype(np.uint8)) ^ hash_codes(dim)).sum(axis=2)
    assert bits.max() <= 3
    assert hash_codes(dim, num_views=1).shape == (20, 1, 8)


def test_views_resample_what_their_spans_say():
    ramp = np.arange(32, dtype=np.float32)
    for span in view_spans().reshape(-1, 2):
        got = resampling(span) @ ramp
        expected = span[0] + (np.arange(32) + 0.5) * (span[1] - span[0]) / 32 - 0.5
        inside = (expected >= 0) & (expected <= 31)
        assert np.allclose(got[inside], expected[inside], atol=1e-3)
        assert inside.sum() >= 26
    assert np.array_equal(resampling(view_spans()[0, 0]), np.eye(32, dtype=np.float32))


def test_alignment_finds_the_crop_from_the_wrong_start():
    images = [scene(number, px=64) for number in range(20)]
    train = thumbnails(*(cropped(image, 0, 1, 3, 2) for image in images))
    test = thumbnails(*images)
    start = placements(np.repeat(view_spans()[:1], 20, axis=0))
    assert pixel_distances(train, test, start)[0].max() < 0.02
    assert pixel_distances(train, np.roll(test, 1, axis=0), start)[0].min() > 0.3
    assert pixel_distances(train[:0], test[:0], start[:0])[0].shape == (0,)
