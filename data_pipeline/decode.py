"""Bytes of an image file to RGB pixels, with one stated outcome for every kind of file.

JPEG with one or three components and 8-bit grey or RGB PNG without transparency are decoded by
torchvision; every other JPEG, PNG, WebP, GIF (first frame) and BMP by Pillow. Width and height are
read from the header and checked before memory is allocated for pixels. docs/data_loading.md lists
the outcomes.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from data_pipeline.broken import BrokenImage
from data_pipeline.webp_header import is_webp, webp_size

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 33
_PNG_GREY, _PNG_RGB = 0, 2
# Start-of-frame markers: all of 0xC0-0xCF but DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Neither a byte of a scan's data, nor a restart within it, nor a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Encoders write about ten. A scan without data costs its file ten bytes and the decoder a pass over
# the whole image, so that a small file could take it hours.
_MAX_SCANS = 100
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})

# What the decoders raise for damaged files; MemoryError and interrupts go through.
_DAMAGE = (RuntimeError, OSError, ValueError, SyntaxError, struct.error, IndexError)

Buffer = bytes | bytearray


def decode_image(data: Buffer, *, max_pixels: int) -> torch.Tensor:
    """Decode an image file to uint8 RGB, (3, height, width), upright by its EXIF orientation.

    Grey is repeated over the channels, CMYK and palettes are converted, transparent pixels are laid
    over white, 16-bit samples keep their high byte. A `bytearray` is decoded without a copy.

    Raises:
        BrokenImage: the format is unknown, the data is cut short or damaged, or the image has more
            than `max_pixels` pixels.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data, max_pixels)
        if data[:8] == _PNG_SIGNATURE:
            return _decode_png(data, max_pixels)
        return _decode_with_pillow(data, max_pixels)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(f"not one of {', '.join(_FORMATS)}") from error
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise BrokenImage(str(error) or type(error).__name__) from error


def _decode_jpeg(data: Buffer, max_pixels: int) -> torch.Tensor:
    width, height, components = jpeg_header(data)
    check_pixels(width, height, max_pixels)
    if components == 4:  # CMYK, and Adobe's inverted CMYK
        return _decode_with_pillow(data, max_pixels)
    return _decode_with_torchvision(decode_jpeg, data, max_pixels)


def _decode_png(data: Buffer, max_pixels: int) -> torch.Tensor:
    if len(data) < _PNG_HEADER_BYTES:
        raise BrokenImage("the PNG file ends within its header")
    width, height, bit_depth, colour = struct.unpack_from(">IIBB", data, 16)
    check_pixels(width, height, max_pixels)
    plain = bit_depth == 8 and colour in (_PNG_GREY, _PNG_RGB)
    if not plain or _has_chunk_before_pixels(data, b"tRNS"):
        return _decode_with_pillow(data, max_pixels)
    return _decode_with_torchvision(decode_png, data, max_pixels)


def _decode_with_torchvision(
    decode: Callable[..., torch.Tensor], data: Buffer, max_pixels: int
) -> torch.Tensor:
    # A bytearray, because torch warns about memory that it must not write to.
    writable = data if isinstance(data, bytearray) else bytearray(data)
    file = torch.frombuffer(writable, dtype=torch.uint8)
    try:
        return decode(file, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        # Pillow reads some files that torchvision refuses, such as a PNG that lacks nothing but its
        # last chunk, and says better what is wrong with the others.
        return _decode_with_pillow(data, max_pixels)


def _decode_with_pillow(data: Buffer, max_pixels: int) -> torch.Tensor:
    if is_webp(data):
        # Pillow allocates the canvas when it opens a WebP file.
        check_pixels(*webp_size(data), max_pixels)
    if data[:8] == _PNG_SIGNATURE:
        _check_png_checksums(data)
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        check_pixels(image.width, image.height, max_pixels)
        image.load()
        pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def jpeg_header(data: Buffer) -> tuple[int, int, int]:
    """Width, height and number of components from a JPEG file's frame header.

    Raises:
        BrokenImage: the file has no frame header, or more scans than any encoder writes.
    """
    place, end = 2, len(data)
    while place + 9 < end:
        if data[place] != 0xFF:
            raise BrokenImage(f"no JPEG marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", data, place + 5)
            _check_scans(data, place, marker in _PROGRESSIVE, components)
            return width, height, components
        else:
            place += 2 + (data[place + 2] << 8 | data[place + 3])
    raise BrokenImage("the JPEG file ends before its frame header")


def _check_scans(data: Buffer, place: int, is_progressive: bool, components: int) -> None:
    """Refuse more scans than `_MAX_SCANS` behind the frame header at `place`."""
    num_scans = 0
    while (found := _NEXT_MARKER.search(data, place)) is not None:
        place, marker = found.start(), data[found.start() + 1]
        if marker == _END_OF_IMAGE or place + 5 > len(data):
            return
        if marker == _START_OF_SCAN:
            num_scans += 1
            if not is_progressive and num_scans == 1 and data[place + 4] == components:
                return  # a sequential file whose first scan holds every component has no other
            if num_scans > _MAX_SCANS:
                raise BrokenImage(f"more than {_MAX_SCANS} scans, which no encoder writes")
        has_length = marker not in _WITHOUT_LENGTH
        place += 2 + (data[place + 2] << 8 | data[place + 3] if has_length else 0)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse sizes that no image of the dataset should have.

    Raises:
        BrokenImage: no pixels, or more than `max_pixels`.
    """
    if width < 1 or height < 1:
        raise BrokenImage(f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise BrokenImage(
            f"{width} x {height} pixels are more than loader.max_image_pixels = {max_pixels}"
        )


def _check_png_checksums(data: Buffer) -> None:
    """Refuse pixels that are not those that were written; Pillow does not look."""
    place, view = 8, memoryview(data)
    while place + 12 <= len(data):
        kind, stop = (
            view[place + 4 : place + 8],
            place + 8 + struct.unpack_from(">I", data, place)[0],
        )
        # Capital: a chunk that no decoder may leave out. Pillow says what a file that ends lacks.
        is_critical = kind[0] & 0x20 == 0
        checksum = int.from_bytes(view[stop : stop + 4], "big")
        is_whole = stop + 4 <= len(data)
        if is_whole and is_critical and zlib.crc32(view[place + 4 : stop]) != checksum:
            raise BrokenImage(f"the checksum of a PNG chunk {bytes(kind)!r} is wrong")
        place = stop + 4


def _has_chunk_before_pixels(data: Buffer, wanted: Literal[b"tRNS"]) -> bool:
    place = 8
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        if kind == wanted:
            return True
        if kind == b"IDAT":
            return False
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False
