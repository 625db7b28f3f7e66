"""What kind of image a file is, its size, and whether it is whole; nothing is decoded.

The usual JPEG and PNG files are understood here, in microseconds; everything else by Pillow.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field

from data_pipeline.webp_header import is_webp, webp_size

# Formats that are stored as they are, and the extension that they get in a tar. MPO is a JPEG file
# that holds further pictures; Pillow recognises it while it opens a JPEG.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# Formats that are stored anew, as PNG, without loss.
CONVERTED = ("GIF", "BMP")
_RECOGNISED = ("JPEG", "PNG", "WEBP", *CONVERTED)
# Pillow's limit, twice its Image.MAX_IMAGE_PIXELS; larger ones get Pillow's own refusal.
_MOST_PIXELS = 178_956_970

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Baseline, extended and progressive Huffman frames: what every decoder reads.
_USUAL_FRAMES = (0xC0, 0xC1, 0xC2)
# Segments that come before the frame header: tables, restart interval, application data, comments.
_SKIPPED_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
_MPO_MARK = b"MPF\0"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_IHDR = b"\0\0\0\rIHDR"
_PNG_HEADER_BYTES = 33
_PNG_LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"


class NotAnImage(Exception):
    """A file that cannot be stored as an image; the message is the reason."""


@dataclass(frozen=True)
class ImageHeader:
    """Format name as Pillow has it, and width and height in pixels as stored.

    `is_usual` marks JPEG and PNG files of which every decoder reads the kind.
    """

    format: str
    width: int
    height: int
    is_usual: bool = field(default=False, compare=False)


def read_header(data: bytes) -> ImageHeader:
    """Recognise an image file by its content.

    Raises:
        NotAnImage: It is empty, none of the formats, damaged at its very beginning, or declares so
            many pixels (over 178,956,970) that it must be a decompression bomb.
    """
    if not data:
        raise NotAnImage("the file is empty")
    header = _usual_jpeg(data) if data.startswith(_JPEG_START) else _usual_png(data)
    if header is None or not 0 < header.width * header.height <= _MOST_PIXELS:
        return _header_by_pillow(data)
    return header


def looks_whole(data: bytes, header: ImageHeader) -> bool:
    """Whether a file is one of the usual kind and as long as its maker meant it to be.

    True for a JPEG with 8-bit samples that ends with its end marker, and for a PNG of which every
    chunk has its checksum. False means "decode it to know".
    """
    if header.format == "JPEG":
        return header.is_usual and data.endswith(_JPEG_END)
    return header.is_usual and _has_sound_chunks(data)


def _refuse_huge_canvas(data: bytes) -> None:
    """Refuse what Pillow refuses in other formats; of WebP it allocates the canvas unseen."""
    width, height = webp_size(data)
    if width * height > _MOST_PIXELS:
        raise NotAnImage(f"too large: {width} x {height} pixels")


def to_png(data: bytes) -> bytes:
    """Store an image of the `CONVERTED` formats (its first frame) as PNG.

    Raises:
        NotAnImage: Its pixels cannot be read.
    """
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=CONVERTED) as image:
            image.save(buffer, "PNG", save_all=False)
    except Exception as error:  # plugins raise many kinds
        raise NotAnImage(f"does not decode: {error}") from error
    return buffer.getvalue()


def _usual_jpeg(data: bytes) -> ImageHeader | None:
    """Size from the frame header of a JPEG file; None if anything about it is out of the usual."""
    place, last = 2, len(data) - 10
    while place <= last and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _USUAL_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            usual = bits == 8 and components in (1, 3, 4)
            return ImageHeader("JPEG", width, height, is_usual=True) if usual else None
        if marker not in _SKIPPED_SEGMENTS:
            return None
        if marker == 0xE2 and data.startswith(_MPO_MARK, place + 4):
            return None
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None


def _usual_png(data: bytes) -> ImageHeader | None:
    is_png = data.startswith(_PNG_SIGNATURE + _PNG_IHDR) and len(data) >= _PNG_HEADER_BYTES
    if not is_png or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return ImageHeader("PNG", width, height, is_usual=True)


def _has_sound_chunks(data: bytes) -> bool:
    """Whether every chunk of a PNG file is there with its checksum, up to IEND."""
    place, end = len(_PNG_SIGNATURE), len(data) - len(_PNG_LAST_CHUNK)
    view = memoryview(data)
    while place < end:
        size = int.from_bytes(view[place : place + 4], "big")
        stop = place + 8 + size
        if stop > end or zlib.crc32(view[place + 4 : stop]) != int.from_bytes(
            view[stop : stop + 4], "big"
        ):
            return False
        place = stop + 4
    return place == end and data.endswith(_PNG_LAST_CHUNK)


def _header_by_pillow(data: bytes) -> ImageHeader:
    from PIL import Image, UnidentifiedImageError

    if is_webp(data):
        _refuse_huge_canvas(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_RECOGNISED) as image:
                return ImageHeader(str(image.format), image.width, image.height)
    except UnidentifiedImageError:
        raise NotAnImage("not a JPEG, PNG, WebP, GIF or BMP image") from None
    except Image.DecompressionBombError as error:
        raise NotAnImage(f"too large: {error}") from error
    except Exception as error:  # plugins raise many kinds for a damaged header
        raise NotAnImage(f"damaged header: {error}") from error
