"""Crops of JPEG files without decoding the rest, where the native decoder is there.

native/jpeg_crop.c does the work: an install compiles it where there is a C compiler, and it calls
the libjpeg-turbo that torchvision brings along. The same library on the same bytes: at full scale
the pixels are those of decoding everything and cutting. Where it was not built, or where that
library is not found, the reason is logged once and whole images are decoded instead.
docs/decisions/0030-crop-only-decoding.md tells why it is made like this.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

logger = logging.getLogger(__name__)

_NATIVE_INTERFACE = 2  # that of native/jpeg_crop.c
# libjpeg-turbo has vector instructions for these inverse DCTs; those between are slower than 8/8.
_FAST_EIGHTHS = (1, 2, 4)
_WHOLE = 8
# Entry points, in the order of `struct library` in native/libjpeg_v8.h.
_FUNCTIONS = (
    "jpeg_std_error",
    "jpeg_CreateDecompress",
    "jpeg_destroy_decompress",
    "jpeg_read_header",
    "jpeg_start_decompress",
    "jpeg_crop_scanline",
    "jpeg_skip_scanlines",
    "jpeg_read_scanlines",
    "jpeg_resync_to_restart",
)
# Where torchvision's wheels keep the libraries they bring, on Linux and on macOS.
_LIBRARY_PATTERNS = ("../torchvision.libs/libjpeg*.so.8*", ".dylibs/libjpeg*.8*.dylib")


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: torch.Tensor) -> torch.Tensor:
        """This part of `image` (channels, H, W), as a view."""
        return image[:, self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class JpegCropper:
    """Decodes crops of JPEG files; any number of threads may share one.

    Most files can be cropped: baseline and progressive, grey and colour, any subsampling. Others
    (CMYK, arithmetic coding, turned by EXIF, cut short, unusual in their markers) are left to
    `decode_image`; which ones, is a function of the file's bytes and of nothing else.
    """

    native: ctypes.CDLL

    def size(self, data: bytearray) -> tuple[int, int] | None:
        """(height, width) of a JPEG file whose crops can be decoded, else None."""
        if len(data) < 4 or data[0] != 0xFF or data[1] != 0xD8:
            return None
        width, height = ctypes.c_int32(), ctypes.c_int32()
        found = self.native.jpeg_size(
            ctypes.byref(ctypes.c_char.from_buffer(data)),
            len(data),
            ctypes.byref(width),
            ctypes.byref(height),
        )
        return (height.value, width.value) if found else None

    def crop(self, data: bytearray, box: Box, eighths: int = _WHOLE) -> torch.Tensor | None:
        """Pixels of a box, uint8 (3, height, width) over packed RGB memory.

        Args:
            data: a file for which `size` gave a size.
            box: in pixels of the whole image, inside it.
            eighths: scale of the decoded pixels, 1 to 8 eighths. Below 8 the box's edges are
                rounded to the nearest pixel of the scaled image.

        Returns:
            None if the file is damaged after all.
        """
        top, left, height, width = scaled(box, eighths)
        out = torch.empty((height, width, 3), dtype=torch.uint8)
        done = self.native.jpeg_crop(
            ctypes.byref(ctypes.c_char.from_buffer(data)),
            len(data),
            eighths,
            (ctypes.c_int32 * 4)(left, top, width, height),
            out.data_ptr(),
        )
        return out.permute(2, 0, 1) if done else None


def scaled(box: Box, eighths: int) -> Box:
    """The box in an image scaled by eighths / 8, each edge rounded to the nearest pixel."""
    top, left = (box.top * eighths + 4) // 8, (box.left * eighths + 4) // 8
    bottom = ((box.top + box.height) * eighths + 4) // 8
    right = ((box.left + box.width) * eighths + 4) // 8
    return Box(top, left, bottom - top, right - left)


def covering_eighths(box: Box, size: tuple[int, int]) -> int:
    """Smallest fast scale at which a decoded box still has at least `size` (height, width)."""
    for eighths in _FAST_EIGHTHS:
        part = scaled(box, eighths)
        if part.height >= size[0] and part.width >= size[1]:
            return eighths
    return _WHOLE


def write_planes(pixels: torch.Tensor, mirror: bool, out: torch.Tensor) -> None:
    """Copy `pixels` into `out`, both uint8 (3, H, W), mirrored left to right if asked for."""
    cropper, width = jpeg_cropper(), out.shape[2]
    # What a decoder gives is packed RGB; torch's own copy out of that takes several times as long.
    packed = pixels.stride() == (1, 3 * width, 3) and pixels.shape == out.shape
    if cropper is None or not packed or not out.is_contiguous():
        out.copy_(pixels.flip(-1) if mirror else pixels)
    else:
        cropper.native.to_planes(pixels.data_ptr(), out.shape[1], width, mirror, out.data_ptr())


@cache
def jpeg_cropper() -> JpegCropper | None:
    """The decoder of crops, or None (and a warning, once a process) where it cannot be had."""
    try:
        return _load(_native_file(), _library_file())
    except _Unavailable as reason:
        logger.warning(
            "JPEG crops are cut out of whole decoded images, which is slower, and "
            "augment.dct_scaling has no effect: %s",
            reason,
        )
        return None


class _Unavailable(Exception):
    """Why crops cannot be decoded alone."""


def _native_file() -> Path:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_jpeg_crop{suffix}"
        if path.is_file():
            return path
    raise _Unavailable(
        "the native decoder was not built; with a C compiler, install vitrain again (`make setup`)"
    )


def _library_file() -> Path:
    folder = Path(torchvision.__file__).parent
    for pattern in _LIBRARY_PATTERNS:
        for path in sorted(folder.parent.glob(f"{folder.name}/{pattern}")):
            return path.resolve()
    raise _Unavailable(f"torchvision {torchvision.__version__} brings no libjpeg with interface 8")


def _load(native_file: Path, library_file: Path) -> JpegCropper:
    try:
        native, library = ctypes.CDLL(str(native_file)), ctypes.CDLL(str(library_file))
        entries = (ctypes.c_void_p * len(_FUNCTIONS))(
            *(ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _FUNCTIONS)
        )
        built_for = native.native_interface()
    except (OSError, AttributeError) as error:
        raise _Unavailable(str(error)) from error
    if built_for != _NATIVE_INTERFACE:
        raise _Unavailable(f"{native_file} was built from other sources; install vitrain again")
    _declare(native)
    if not native.use_library(entries):
        raise _Unavailable(f"{library_file} has another interface than libjpeg 8")
    cropper = JpegCropper(native)
    if not _agrees(cropper.crop):
        raise _Unavailable(f"{library_file} decodes a test picture unlike torchvision")
    return cropper


def _declare(native: ctypes.CDLL) -> None:
    file = (ctypes.c_void_p, ctypes.c_size_t)
    native.jpeg_size.argtypes = (*file, ctypes.c_void_p, ctypes.c_void_p)
    native.jpeg_crop.argtypes = (*file, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    native.to_planes.argtypes = (
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_int,
        ctypes.c_void_p,
    )
    native.to_planes.restype = None


def _agrees(crop: Callable[[bytearray, Box], torch.Tensor | None]) -> bool:
    """Whether a crop of a small picture comes out as from torchvision's own decoder."""
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(80), indexing="ij")
    picture = torch.stack([columns * 3, rows * 5, (rows * columns) % 251]).to(torch.uint8)
    file = encode_jpeg(picture, quality=90)
    box = Box(17, 21, 23, 40)
    expected = box.cut(decode_jpeg(file, ImageReadMode.RGB))
    found = crop(bytearray(file.numpy().tobytes()), box)
    return found is not None and torch.equal(found, expected)
