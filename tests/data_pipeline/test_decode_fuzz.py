"""No file crashes, hangs or swells the decoder: damaged at random, or built to do harm."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.data_groups import AugmentConfig
from data_pipeline.augment import TrainTransform
from data_pipeline.broken import BrokenImage
from data_pipeline.decode import decode_image
from tests.data_pipeline.sample_shards import encode

DRIVER = Path(__file__).with_name("drive_decode.py")
SLOWEST_SECONDS = 5.0  # of processor time for one file; most take milliseconds
MORE_MEMORY_MIB = 100.0


def drive(*arguments: str, seconds: float = 280) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(DRIVER), *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return {**json.loads(ended.stdout), "said": ended.stderr}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("mutations", 2000), ("hypothesis", 500)])
def test_damaged_files_are_images_or_broken(kind: str, count: int) -> None:
    report = drive(kind, str(count))
    assert report["inputs"] >= count
    assert min(report["decoded"], report["broken"]) > count // 20
    assert report["reasons"] > 20
    assert report["slowest_seconds"] < SLOWEST_SECONDS
    assert report["more_memory_mib"] < MORE_MEMORY_MIB
    assert report["out_of_memory"] == []


def test_a_header_of_50000_by_50000_pixels_costs_no_memory() -> None:
    """Whole files of 7.5 GB of pixels, in an address space that may grow by 512 MiB."""
    report = drive("headers")
    assert report["more_memory_mib"] < 16
    lines = report["said"].splitlines()
    kinds = ("jpeg", "progressive jpeg", "png", "png by pillow", "webp")
    for kind in kinds:
        decoded, stored = (line for line in lines if line.startswith(f"{kind}: "))
        assert "50000 x 50000 pixels are more than loader.max_image_pixels" in decoded
        assert "too large" in stored
    assert report["broken"] == len(kinds)


def many_scans(data: bytes, count: int) -> bytes:
    """A JPEG file whose first scan's header comes again and again, without data."""
    start = data.index(b"\xff\xda")
    header = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    return data[:start] + header * count + data[start:]


def test_a_jpeg_of_endless_scans_is_refused_unread() -> None:
    picture = Image.new("RGB", (64, 64), "red")
    progressive = encode(picture, "JPEG", progressive=True)
    with pytest.raises(BrokenImage, match="more than 100 scans"):
        decode_image(many_scans(progressive, 200), max_pixels=10_000)
    assert decode_image(progressive, max_pixels=10_000).shape == (3, 64, 64)
    crop = TrainTransform(AugmentConfig(), (16, 16), seed=0).decode  # never mind the native decoder
    with pytest.raises(BrokenImage, match="more than 100 scans"):
        crop(bytearray(many_scans(progressive, 200)), 0, max_pixels=10_000)

    # One component a scan, as a sequential file may have it; else the first scan is the only one.
    sequential = bytearray(encode(picture, "JPEG"))
    frame = sequential.index(b"\xff\xc0")
    scan = sequential.index(b"\xff\xda", frame)
    single = sequential[:scan] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + sequential[scan:]
    with pytest.raises(BrokenImage, match="more than 100 scans"):
        decode_image(many_scans(bytes(single), 200), max_pixels=10_000)


def test_what_looks_like_scans_is_no_harm() -> None:
    """Phones append videos, and any table or comment may hold the two bytes."""
    progressive = encode(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    assert decode_image(progressive + b"\xff\xda" * 300, max_pixels=10_000).shape == (3, 64, 64)
    scan = progressive.index(b"\xff\xda")
    comment = b"\xff\xfe\x02\x5a" + b"\xff\xda" * 300
    told = progressive[:scan] + comment + progressive[scan:]
    assert decode_image(told, max_pixels=10_000).shape == (3, 64, 64)
    hiding = b"\xff\xfe\0\x04\xff\xd9"  # an end of the image that is none
    hidden = progressive[:scan] + hiding + many_scans(progressive, 200)[scan:]
    with pytest.raises(BrokenImage, match="more than 100 scans"):
        decode_image(hidden, max_pixels=10_000)


def test_a_thumbnail_with_scans_of_its_own_is_no_harm() -> None:
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 300
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True, exif=exif)
    assert decode_image(file.getvalue(), max_pixels=10_000).shape == (3, 64, 64)
