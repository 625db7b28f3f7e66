"""Which files get into a shard, and as what; headers against Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from configs.errors import RefusedInput
from data_pipeline.image_header import (
    ImageHeader,
    NotAnImage,
    _header_by_pillow,
    looks_whole,
    read_header,
)
from data_pipeline.prepare_image import ImageRecipe, prepare_image
from tests.data_pipeline import official_layouts as layouts


def picture(size=(40, 30), format="JPEG", mode="RGB", **options) -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


KINDS = {
    "baseline": picture(),
    "progressive": picture(progressive=True),
    "grey": picture(mode="L"),
    "cmyk": picture(mode="CMYK"),
    "exif": picture(exif=b"Exif\0\0" + b"x" * 300),
    "comment": picture(comment=b"\xff\xd8 not a marker"),
    "png": picture(format="PNG"),
    "palette": picture(format="PNG", mode="P"),
    "webp": picture(format="WEBP"),
    "gif": picture(format="GIF"),
    "bmp": picture(format="BMP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_headers_are_those_of_pillow(kind):
    assert read_header(KINDS[kind]) == _header_by_pillow(KINDS[kind])


def test_headers_of_damaged_files_are_those_of_pillow():
    """Every byte of a header flipped in turn, and every length: never another size or outcome."""

    def outcome(read, data):
        try:
            return read(data)
        except NotAnImage as error:
            return "bomb" if "too large" in str(error) else "damaged"

    for data in (KINDS["baseline"][:700], KINDS["png"][:40]):
        for place in range(len(data)):
            mutated = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            for file in (mutated, data[:place]):
                ours = outcome(read_header, file) if file else "damaged"
                theirs = outcome(_header_by_pillow, file)
                # Damage behind the size is left to the check of the whole file.
                if isinstance(ours, ImageHeader) and isinstance(theirs, ImageHeader):
                    assert ours == theirs


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "cmyk", "png", "palette"])
def test_whole_files_need_no_decoding_and_cut_ones_do(kind):
    data = KINDS[kind]
    header = read_header(data)
    assert looks_whole(data, header)
    assert not any(looks_whole(data[:length], header) for length in range(len(data)))


def test_a_damaged_png_chunk_is_noticed():
    data = bytearray(KINDS["png"])
    data[len(data) // 2] ^= 1
    header = read_header(bytes(data))
    assert not looks_whole(bytes(data), header)
    with pytest.raises(NotAnImage, match="does not decode"):
        prepare_image(bytes(data), ImageRecipe())


@pytest.mark.parametrize("kind", ["baseline", "png"])
def test_a_file_that_is_cut_short_is_left_out_or_kept(kind):
    data = KINDS[kind]
    cut = data[: len(data) * 3 // 4]
    with pytest.raises(NotAnImage, match="does not decode"):
        prepare_image(cut, ImageRecipe())
    kept = prepare_image(cut, ImageRecipe(keep_broken=True))
    assert (kept.data, kept.change, kept.width, kept.height) == (cut, "broken", 40, 30)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff\xe0junk"])
def test_what_is_no_image_is_never_kept(data):
    with pytest.raises(NotAnImage):
        prepare_image(data, ImageRecipe(keep_broken=True))


def test_a_jpeg_with_something_behind_its_end_is_decoded_to_know():
    data = KINDS["baseline"] + b"trailer"
    assert not looks_whole(data, read_header(data))
    assert prepare_image(data, ImageRecipe()).data == data


def test_decoding_all_finds_what_the_quick_check_does_not():
    """A JPEG without quantisation tables: markers and end are there, pixels are not."""
    data = KINDS["baseline"]
    start = data.index(b"\xff\xdb")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    broken = data[:start] + data[start + 2 + length :]
    broken = broken.replace(b"\xff\xdb", b"\xff\xfe")
    assert prepare_image(broken, ImageRecipe(check="quick")).data == broken
    with pytest.raises(NotAnImage, match="does not decode"):
        prepare_image(broken, ImageRecipe())


def test_smaller_images_keep_their_bytes():
    for kind in ("baseline", "png", "webp"):
        prepared = prepare_image(KINDS[kind], ImageRecipe(max_side=30))
        assert (prepared.data, prepared.change) == (KINDS[kind], "")


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 300), (133, 100)), ((101, 900), (100, 891)), ((250, 250),) * 2]
)
def test_the_shorter_side_is_made_max_side(size, expected):
    expected = (100, 100) if size == (250, 250) else expected
    prepared = prepare_image(picture(size), ImageRecipe(max_side=100, quality=80, chroma="444"))
    with Image.open(io.BytesIO(prepared.data)) as image:
        assert image.format == "JPEG" and image.size == expected
        assert (prepared.width, prepared.height) == expected
        assert image.layer[1][1:3] == (1, 1)  # chroma as fine as luma
    assert (prepared.change, prepared.extension) == ("shrunk", "jpg")


def test_chroma_and_quality_reach_the_file():
    files = {
        (quality, chroma): prepare_image(
            picture((200, 200)), ImageRecipe(max_side=64, quality=quality, chroma=chroma)
        ).data
        for quality in (50, 95)
        for chroma in ("420", "422", "444")
    }
    sizes = {key: len(data) for key, data in files.items()}
    assert sizes[50, "420"] < sizes[50, "422"] < sizes[50, "444"] < sizes[95, "444"]


def test_lossless_formats_stay_lossless_and_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    turned = prepare_image(picture((60, 40), exif=exif), ImageRecipe(max_side=20))
    assert (turned.width, turned.height) == (20, 30)
    for format in ("PNG", "GIF", "BMP"):
        prepared = prepare_image(picture((60, 40), format=format), ImageRecipe(max_side=20))
        assert (prepared.extension, prepared.width, prepared.height) == ("png", 30, 20)


def test_shrinking_resembles_pillow_on_a_smooth_image():
    down, across = np.mgrid[0:120, 0:160]
    pixels = np.stack([down * 2, across, 255 - across], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    prepared = prepare_image(buffer.getvalue(), ImageRecipe(max_side=60))
    expected = Image.fromarray(pixels).resize((80, 60), Image.Resampling.LANCZOS)
    with Image.open(io.BytesIO(prepared.data)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_a_header_that_promises_too_many_pixels_is_refused_without_decoding():
    with pytest.raises(NotAnImage, match="too large"):
        prepare_image(layouts.png_that_claims(50_000, 50_000), ImageRecipe(max_side=100))


def test_a_png_header_with_a_wrong_checksum_is_left_to_pillow():
    data = bytearray(KINDS["png"])
    data[16:20] = struct.pack(">I", 41)
    with pytest.raises(NotAnImage):
        read_header(bytes(data))
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert read_header(bytes(data)).width == 41


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_side": 4}, "--max-side 4: give at least 8"),
        ({"max_side": 100, "quality": 0}, "--quality 0: give 1 to 95"),
        ({"max_side": 100, "chroma": "411"}, "--chroma 411: choose one of 444, 422, 420"),
        ({"quality": 80}, "apply to images that --max-side makes smaller"),
        ({"check": "never"}, "--check never: choose quick or decode"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(options, message):
    with pytest.raises(RefusedInput, match=message):
        ImageRecipe(**options)
