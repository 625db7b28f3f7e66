"""Files that crop-only decoding declines, and mutated ones."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.data_groups import AugmentConfig
from data_pipeline.augment import TrainTransform
from data_pipeline.broken import BrokenImage
from data_pipeline.decode import decode_image
from data_pipeline.jpeg_crop import Box, jpeg_cropper
from tests.data_pipeline.jpeg_photographs import (
    MAX_PIXELS,
    kinds,
    needs_native,
    orientation,
    photo_views,
    photograph,
    random_box,
    whole,
)
from tests.data_pipeline.sample_shards import encode

# ------------------------------------------------------------------ files that are not for us


@needs_native
@pytest.mark.parametrize("turned", range(2, 9))
def test_a_turned_image_is_decoded_whole(turned: int) -> None:
    data = encode(photograph(60, 90), "JPEG", exif=orientation(turned))
    assert jpeg_cropper().size(bytearray(data)) is None
    for view, expected, cropped in photo_views(data, 3):
        assert not cropped and torch.equal(view, expected)


FILE = encode(photograph(60, 90), "JPEG")


@needs_native
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Image.fromarray(photograph(9, 9)).convert("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(FILE[:-2], id="without-end"),
        pytest.param(FILE[: len(FILE) // 2], id="half"),
        pytest.param(FILE[:-2] + FILE[2:40] + b"\xff\xd9", id="segments-behind-the-scan"),
        pytest.param(FILE.replace(b"\xff\xc0", b"\xff\xc9"), id="arithmetic"),
        pytest.param(FILE.replace(b"\xff\xc0", b"\xff\xc3"), id="lossless"),
        pytest.param(encode(photograph(9, 9), "PNG"), id="png"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xd8", id="start-only"),
        pytest.param(b"\xff\xd8\xff", id="three-bytes"),
        pytest.param(b"\xff\xd8\xff\xd9", id="nothing-between"),
    ],
)
def test_unusual_files_are_left_to_the_decoder_of_whole_images(data: bytes) -> None:
    assert jpeg_cropper().size(bytearray(data)) is None


@needs_native
def test_trailing_bytes_and_fill_bytes_do_no_harm() -> None:
    place = FILE.index(b"\xff\xda")
    for data in (FILE + b"garbage", FILE[:place] + b"\xff\xff" + FILE[place:]):
        assert jpeg_cropper().size(bytearray(data)) == (60, 90)
        box = Box(11, 13, 20, 30)
        assert torch.equal(jpeg_cropper().crop(bytearray(data), box), box.cut(whole(FILE)))


@needs_native
def test_a_progression_that_stops_early_is_decoded_whole() -> None:
    """Its blocks are smoothed into each other, across the edges of a crop."""
    data = encode(photograph(60, 90), "JPEG", progressive=True)
    places = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    table = data.rindex(b"\xff\xc4", 0, places[3])
    early = bytearray(data[:table] + b"\xff\xd9")
    assert jpeg_cropper().size(early) == (60, 90)
    assert jpeg_cropper().crop(early, Box(0, 0, 20, 20)) is None
    for view, expected, cropped in photo_views(bytes(early), 4):
        assert not cropped and torch.equal(view, expected)


@needs_native
def test_bombs_are_broken_before_memory_is_taken() -> None:
    data = bytearray(FILE)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xc3\x50\xc3\x50"  # 50,000 x 50,000
    transform = TrainTransform(AugmentConfig(), (8, 8), 0)
    with pytest.raises(BrokenImage, match="50000 x 50000 pixels are more than"):
        transform.decode(data, 0, max_pixels=MAX_PIXELS)


# ------------------------------------------------------------------ fuzzing


def outcome(data: bytes, box: Box) -> torch.Tensor | str:
    """Pixels of the box from the whole image, or "broken"."""
    try:
        image = decode_image(bytearray(data), max_pixels=MAX_PIXELS)
    except BrokenImage:
        return "broken"
    return box.cut(image)


def check_mutant(data: bytes, rng: random.Random) -> bool:
    """A mutated file gives what the decoder of whole images makes of it; true if it was cropped."""
    file = bytearray(data)
    size = jpeg_cropper().size(file)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return False
    for _ in range(2):
        box = random_box(rng, *size)
        found, expected = jpeg_cropper().crop(file, box), outcome(data, box)
        if found is not None:
            assert isinstance(expected, torch.Tensor), "a broken file gave a crop"
            assert torch.equal(found, expected)
    return found is not None


@needs_native
@pytest.mark.parametrize("kind", ["420", "progressive", "restarts", "grey"])
def test_mutated_files_give_what_whole_decoding_gives(kind: str) -> None:
    rng, original = random.Random(7), kinds(70, 90)[kind]
    cropped = 0
    for _ in range(600):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 2, 8])):
            action, place = rng.randrange(4), rng.randrange(2, len(data))
            if action == 0:
                data[place] = rng.randrange(256)
            elif action == 1:
                del data[place : place + rng.randint(1, 40)]
            elif action == 2:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            else:
                data[place : place + 2] = b"\xff" + bytes([rng.randrange(0xC0, 0x100)])
        cropped += check_mutant(bytes(data), rng)
    assert cropped > 30


@needs_native
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, len(FILE)), st.integers(0, 2**32))
def test_foreign_bytes_within_a_file_do_no_harm(piece: bytes, place: int, seed: int) -> None:
    check_mutant(FILE[:place] + piece + FILE[place:], random.Random(seed))
    check_mutant(FILE[:place] + piece + FILE[place + len(piece) :], random.Random(seed))
    check_mutant(b"\xff\xd8" + piece, random.Random(seed))


@needs_native
@pytest.mark.parametrize("length", range(0, len(FILE), 41))
def test_a_file_cut_anywhere_is_left_to_the_decoder_of_whole_images(length: int) -> None:
    assert jpeg_cropper().size(bytearray(FILE[:length])) is None
