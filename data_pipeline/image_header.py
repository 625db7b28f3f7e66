"""What kind of image a file is, and its size, from its first bytes; nothing is decoded."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

# Formats that are stored as they are, and the extension that they get in a tar. MPO is a JPEG file
# that holds further pictures; Pillow recognises it while it opens a JPEG.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# Formats that are stored anew, as PNG, without loss.
CONVERTED = ("GIF", "BMP")
_RECOGNISED = ("JPEG", "PNG", "WEBP", *CONVERTED)


class NotAnImage(Exception):
    """A file that cannot be stored as an image; the message is the reason."""


@dataclass(frozen=True)
class ImageHeader:
    """Format name as Pillow has it, and width and height in pixels as stored."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> ImageHeader:
    """Recognise an image file by its content.

    Raises:
        NotAnImage: It is empty, none of the formats, damaged at its very beginning, or declares so
            many pixels (over 178,956,970) that it must be a decompression bomb.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise NotAnImage("the file is empty")
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
    except Exception as error:  # as above
        raise NotAnImage(f"its pixels cannot be read: {error}") from error
    return buffer.getvalue()
