"""Every kind of image file has one tested outcome; Pillow is the reference."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data_pipeline.broken import BrokenImage
from data_pipeline.decode import decode_image
from tests.data_pipeline.sample_shards import encode

ROWS, COLUMNS = np.mgrid[:40, :60]
PIXELS = np.stack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2], -1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
HALF_OPAQUE = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 128, np.uint8)])
ON_WHITE = np.rint(PIXELS * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
MAX_PIXELS = 1_000_000


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels as (H, W, 3), with every promise about the tensor checked."""
    image = decode_image(data, max_pixels=max_pixels)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int], bit_depth: int, colour: int, line: bytes, extra: bytes = b""
) -> bytes:
    """A PNG of equal lines, for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", *size, bit_depth, colour, 0, 0, 0)
    pixels = zlib.compress((b"\0" + line) * size[1])
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(PIXELS, "JPEG"), id="jpeg"),
        pytest.param(encode(PIXELS, "JPEG", progressive=True), id="progressive"),
        pytest.param(encode(PIXELS, "JPEG", subsampling=0), id="444"),
        pytest.param(encode(PICTURE.convert("L"), "JPEG"), id="grey-jpeg"),
        pytest.param(encode(PICTURE.convert("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(encode(PIXELS, "PNG"), id="png"),
        pytest.param(encode(PICTURE.convert("L"), "PNG"), id="grey-png"),
        pytest.param(encode(PICTURE.quantize(16), "PNG"), id="palette"),
        pytest.param(encode(PICTURE.convert("1"), "PNG"), id="one-bit"),
        pytest.param(encode(PICTURE.convert("LA"), "PNG"), id="opaque-grey-alpha"),
        pytest.param(encode(PIXELS, "WEBP"), id="webp"),
        pytest.param(encode(PIXELS, "WEBP", lossless=True), id="webp-lossless"),
        pytest.param(encode(PIXELS, "GIF"), id="gif"),
        pytest.param(encode(PIXELS, "BMP"), id="bmp"),
    ],
)
def test_decodes_as_pillow_does(data: bytes) -> None:
    # Both use libjpeg-turbo with the accurate DCT; other builds may differ by a rounding.
    assert np.abs(decode(data).astype(int) - pillow(data).astype(int)).max() <= 1


def test_adobe_cmyk_is_inverted() -> None:
    """Photoshop stores CMYK inverted; the picture must not come out as a negative."""
    data = encode(PICTURE.convert("CMYK"), "JPEG")
    assert b"Adobe" in data
    assert np.abs(decode(data).astype(int) - PIXELS.astype(int)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PIXELS, format, exif=exif)
    upright = decode(data)
    assert upright.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    assert np.abs(upright.astype(int) - pillow(data).astype(int)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(format: str) -> None:
    data = encode(HALF_OPAQUE, format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.abs(decode(data).astype(int) - ON_WHITE.astype(int)).max() <= 1


def test_a_transparent_colour_and_a_transparent_palette_entry_become_white() -> None:
    key = png_chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))
    line = bytes([10, 20, 30, 40, 50, 60])
    assert decode(png((2, 2), 8, 2, line, key))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([1, 2, 3, 40, 50, 60])
    data = encode(palette, "PNG", transparency=0)
    assert decode(data)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_16_bit_samples_keep_their_high_byte() -> None:
    grey = (COLUMNS * 1000 + ROWS).astype(np.uint16)
    expected = np.repeat((grey >> 8)[..., None], 3, axis=2)
    assert np.array_equal(decode(encode(Image.fromarray(grey), "PNG")), expected)
    line = struct.pack(">3H", 1000, 20_000, 65_535)
    assert decode(png((1, 2), 16, 2, line))[0, 0].tolist() == [1000 >> 8, 20_000 >> 8, 255]


JPEG, PNG = encode(PIXELS, "JPEG"), encode(PIXELS, "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(JPEG[: len(JPEG) // 2], "(?i)truncated", id="half-jpeg"),
        pytest.param(JPEG[:-2], "truncated", id="jpeg-without-end"),
        pytest.param(JPEG[:20], "before its frame header", id="jpeg-header-cut"),
        pytest.param(JPEG[:2], "before its frame header", id="jpeg-start-only"),
        pytest.param(b"\xff\xd8 nonsense nonsense", "no JPEG marker", id="jpeg-nonsense"),
        pytest.param(PNG[: len(PNG) // 2], "truncated", id="half-png"),
        pytest.param(PNG[:20], "within its header", id="png-header-cut"),
        pytest.param(PNG[:60] + b"\0\0\0\0" + PNG[64:], ".", id="png-damaged"),
        pytest.param(b"", "not one of", id="empty"),
        pytest.param(b"<html>404</html>", "not one of", id="web-page"),
        pytest.param(encode(PIXELS, "TIFF"), "not one of", id="other-format"),
        pytest.param(encode(PIXELS, "WEBP")[:50], ".", id="half-webp"),
    ],
)
def test_damaged_files_are_broken_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImage, match=reason):
        decode_image(data, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("length", range(0, len(JPEG), 37))
@pytest.mark.parametrize("data", [JPEG, PNG, encode(PIXELS, "WEBP"), encode(PIXELS, "GIF")])
def test_a_file_cut_anywhere_is_broken_or_an_image(data: bytes, length: int) -> None:
    """Nothing but BrokenImage comes out, whatever the decoders think of the rest."""
    try:
        decode(data[:length])
    except BrokenImage as error:
        assert str(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_images_above_the_limit_are_broken(format: str) -> None:
    data = encode(np.zeros((100, 101, 3), np.uint8), format)
    assert decode(data, max_pixels=100 * 101).shape == (100, 101, 3)
    with pytest.raises(BrokenImage, match=r"101 x 100 pixels are more than .* = 10099"):
        decode_image(data, max_pixels=100 * 101 - 1)


def bomb_jpeg() -> bytes:
    data = bytearray(JPEG)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bomb_jpeg(), id="jpeg"),
        pytest.param(png((60_000, 60_000), 8, 2, b"")[:200], id="png"),
        pytest.param(png((60_000, 60_000), 16, 6, b"")[:200], id="png-by-pillow"),
    ],
)
def test_a_bomb_is_refused_before_its_memory_is_taken(data: bytes) -> None:
    """12 GB of pixels would not fit; the header alone must be enough to say no."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning would come after its header
        with pytest.raises(BrokenImage, match="pixels are more than"):
            decode_image(data, max_pixels=178_956_970)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, b"VP8 "), ({"lossless": True}, b"VP8L"), ({"exif": Image.Exif()}, b"VP8X")],
)
def test_webp_size_is_read_before_pillow_opens_the_file(
    options: dict[str, Any], kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "exif" in options:
        options["exif"][0x0112] = 1
    data = encode(np.zeros((100, 101, 3), np.uint8), "WEBP", **options)
    assert data[12:16] == kind
    assert decode(data).shape == (100, 101, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened a WebP bomb"))
    with pytest.raises(BrokenImage, match="101 x 100 pixels"):
        decode_image(data, max_pixels=10_099)


def test_no_pixels_is_broken() -> None:
    with pytest.raises(BrokenImage, match="0 x 5"):
        decode_image(png((0, 5), 8, 2, b""), max_pixels=10)


def test_bytes_and_bytearray_are_the_same_and_left_alone() -> None:
    copy = bytearray(JPEG)
    assert np.array_equal(decode(copy), decode(JPEG))
    assert copy == JPEG


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_png_whose_checksum_is_wrong_is_broken(mode: str) -> None:
    """Decoders give a picture of what is left, or Pillow does where torchvision refuses."""
    noise = np.random.default_rng(0).integers(0, 20, (16, 16, 3), dtype=np.uint8)
    data = bytearray(encode(Image.fromarray(noise).convert(mode)))
    whole = decode_image(data, max_pixels=1000)
    assert whole.shape == (3, 16, 16)
    without_end = data[:-12]
    assert torch.equal(decode_image(without_end, max_pixels=1000), whole)
    data[len(data) // 2 : -20] = bytes(len(data) - 20 - len(data) // 2)
    with pytest.raises(BrokenImage, match=r"checksum of a PNG chunk b'(IDAT|PLTE)' is wrong"):
        decode_image(data, max_pixels=1000)
