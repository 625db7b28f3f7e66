"""Crop-only decoding gives the pixels of decoding everything and cutting, or declines a file."""

import ctypes
import io
import logging
import os
import random
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from configs.data_groups import AugmentConfig
from data_pipeline import jpeg_crop
from data_pipeline.augment import Crop, TrainTransform
from data_pipeline.broken import BrokenImage
from data_pipeline.decode import decode_image
from data_pipeline.jpeg_crop import Box, covering_eighths, jpeg_cropper, scaled, write_planes
from data_pipeline.resizing import Resizing
from tests.data_pipeline.sample_shards import encode

MAX_PIXELS = 10_000_000
NATIVE = Path(jpeg_crop.__file__).parent / "native"
COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])

needs_native = pytest.mark.skipif(
    jpeg_cropper() is None, reason="the native decoder is not built (make setup)"
)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with some noise, so that every DCT coefficient is in use; (H, W, 3)."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (3, 9, 11), np.uint8))
    # One pixel more, because torch cannot resize to a single one.
    smooth = reference.resize(small, [height + 1, width + 1])[:, :-1, :-1]
    smooth = smooth.permute(1, 2, 0).numpy().astype(int)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def kinds(height: int, width: int) -> dict[str, bytes]:
    pixels = photograph(height, width)
    grey = Image.fromarray(pixels).convert("L")
    return {
        "444": encode(pixels, "JPEG", subsampling=0),
        "422": encode(pixels, "JPEG", subsampling=1),
        "420": encode(pixels, "JPEG", subsampling=2, quality=95),
        "progressive": encode(pixels, "JPEG", progressive=True),
        "progressive-444": encode(pixels, "JPEG", progressive=True, subsampling=0),
        "grey": encode(grey, "JPEG"),
        "grey-progressive": encode(grey, "JPEG", progressive=True),
        "restarts": encode(pixels, "JPEG", restart_marker_rows=1),
        "restart-blocks": encode(pixels, "JPEG", restart_marker_blocks=3),
        "rgb": encode(pixels, "JPEG", keep_rgb=True, subsampling=0),
        "upright-exif": encode(pixels, "JPEG", exif=orientation(1)),
    }


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def random_box(rng: random.Random, height: int, width: int) -> Box:
    rows, columns = rng.randint(1, height), rng.randint(1, width)
    return Box(rng.randint(0, height - rows), rng.randint(0, width - columns), rows, columns)


def whole(data: bytes) -> torch.Tensor:
    return decode_image(bytearray(data), max_pixels=MAX_PIXELS)


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("size", [(97, 131), (16, 200), (200, 9), (1, 1), (33, 32)])
def test_at_full_scale_a_crop_is_the_cut_of_the_whole(kind: str, size: tuple[int, int]) -> None:
    data = bytearray(kinds(*size)[kind])
    cropper, rng = jpeg_cropper(), random.Random(5)
    assert cropper.size(data) == size
    image = whole(data)
    edges = [Box(0, 0, *size), Box(size[0] - 1, size[1] - 1, 1, 1), Box(0, 0, 1, 1)]
    for box in edges + [random_box(rng, *size) for _ in range(60)]:
        assert torch.equal(cropper.crop(data, box), box.cut(image)), box


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_at_a_smaller_scale_a_crop_is_the_cut_of_the_whole_at_that_scale(
    kind: str, eighths: int
) -> None:
    size = (160, 240)
    data = bytearray(kinds(*size)[kind])
    cropper, rng = jpeg_cropper(), random.Random(5)
    small = cropper.crop(data, Box(0, 0, *size), eighths)
    assert small.shape[1:] == (size[0] * eighths // 8, size[1] * eighths // 8)
    for _ in range(60):
        box = random_box(rng, *size)
        part = scaled(box, eighths)
        if min(part.height, part.width) > 0:
            assert torch.equal(cropper.crop(data, box, eighths), part.cut(small)), box


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_at_a_smaller_scale_pixels_are_near_the_average_of_those_they_cover(
    kind: str, eighths: int
) -> None:
    """The mean over each square of pixels is what a reduced inverse DCT stands for."""
    size = (160, 240)
    data = bytearray(kinds(*size)[kind])
    small = jpeg_cropper().crop(data, Box(0, 0, *size), eighths)
    averaged = torch.nn.functional.avg_pool2d(whole(data).float()[None], 8 // eighths)[0]
    difference = (small.float() - averaged).abs().mean()
    # 4:2:2 loses half of its chroma columns: libjpeg reduces both directions of a component alike.
    assert difference < (15 if kind == "422" else 5)


def test_the_scale_is_the_smallest_that_covers() -> None:
    assert covering_eighths(Box(0, 0, 224, 224), (224, 224)) == 8
    assert covering_eighths(Box(0, 0, 447, 900), (224, 224)) == 4  # 447 / 2 rounds up
    assert covering_eighths(Box(1, 0, 446, 900), (224, 224)) == 8
    assert covering_eighths(Box(0, 0, 1000, 900), (224, 224)) == 2
    assert covering_eighths(Box(0, 0, 2000, 4000), (224, 224)) == 1
    rng = random.Random(1)
    for _ in range(500):
        box = random_box(rng, 3000, 3000)
        part = scaled(box, covering_eighths(box, (100, 120)))
        if box.height >= 100 and box.width >= 120:
            assert part.height >= 100 and part.width >= 120


# ------------------------------------------------------------------ views


def photo_views(
    data: bytes, count: int, size: tuple[int, int] = (64, 64), **augment: object
) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Per position: the view as training makes it, that of the whole image, whether cropped."""
    transform = TrainTransform(AugmentConfig(**augment), size, seed=3)
    found = []
    for position in range(count):
        source = transform.decode(bytearray(data), position, max_pixels=MAX_PIXELS)
        views = [torch.empty((3, *size), dtype=torch.uint8) for _ in range(2)]
        transform(source, position, views[0])
        transform(whole(data), position, views[1])
        found.append((views[0], views[1], isinstance(source, Crop)))
    return found


@needs_native
@pytest.mark.parametrize("kind", kinds(8, 8))
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_without_dct_scaling_views_are_exactly_those_of_whole_images(
    kind: str, interpolation: str, antialias: bool
) -> None:
    options = {"interpolation": interpolation, "antialias": antialias, "dct_scaling": False}
    views = photo_views(kinds(150, 211)[kind], 12, **options)
    assert all(cropped and torch.equal(view, expected) for view, expected, cropped in views)


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (8, 300)])
@pytest.mark.parametrize("kind", ["420", "grey"])
def test_tiny_images_give_a_view(kind: str, size: tuple[int, int]) -> None:
    views = photo_views(kinds(*size)[kind], 10, (16, 16))
    assert all(cropped and torch.equal(view, expected) for view, expected, cropped in views)


@needs_native
@pytest.mark.parametrize("kind", ["420", "progressive", "grey"])
def test_with_dct_scaling_views_differ_a_little(kind: str) -> None:
    views = photo_views(kinds(700, 900)[kind], 20, crop_area_min=0.2)
    changed = 0
    for view, expected, cropped in views:
        assert cropped
        difference = (view.float() - expected.float()).abs()
        assert difference.mean() < 4
        changed += bool(difference.max() > 0)
    assert changed > 10  # or nothing was decoded at a smaller scale


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pixels_are_the_same_from_any_number_of_threads(threads: int) -> None:
    data = list(kinds(300, 280).values())
    transform = TrainTransform(AugmentConfig(), (48, 48), seed=3)

    def view(position: int) -> bytes:
        out = torch.empty((3, 48, 48), dtype=torch.uint8)
        file = bytearray(data[position % len(data)])
        transform(transform.decode(file, position, max_pixels=MAX_PIXELS), position, out)
        return out.numpy().tobytes()

    expected = [view(position) for position in range(60)]
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(view, range(60), timeout=60)) == expected


@needs_native
@pytest.mark.parametrize("crop", ["resize", "none"])
def test_other_crops_decode_the_whole_image(crop: str) -> None:
    for view, expected, cropped in photo_views(kinds(90, 100)["420"], 5, crop=crop):
        assert not cropped and torch.equal(view, expected)


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


# ------------------------------------------------------------------ into the batch


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (64, 48), (16, 1), (2, 33), (3, 16)])
def test_planes_are_written_as_torch_writes_them(mirror: bool, size: tuple[int, int]) -> None:
    planar = torch.from_numpy(photograph(*size)).permute(2, 0, 1)
    for pixels in (planar, planar.contiguous(), planar.mT.contiguous().mT):
        batch = torch.full((3, 3, *size), 7, dtype=torch.uint8)
        write_planes(pixels, mirror, batch[1])
        assert torch.equal(batch[1], pixels.flip(-1) if mirror else pixels)
        assert batch[0].unique().tolist() == batch[2].unique().tolist() == [7]


# ------------------------------------------------------------------ without the native decoder


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Look for the decoder anew within a test, and again after it."""
    jpeg_cropper.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    jpeg_cropper.cache_clear()


@pytest.mark.parametrize("lost", ["native", "library", "stale", "foreign"])
def test_without_the_decoder_whole_images_are_decoded_and_it_is_said_once(
    lost: str, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    if lost != "native" and not any(NATIVE.parent.glob("_jpeg_crop*")):
        pytest.skip("the native decoder is not built (make setup)")
    reason = {
        "native": "was not built",
        "library": "brings no libjpeg",
        "stale": "built from other sources",
        "foreign": "jpeg_std_error",
    }[lost]
    if lost == "native":
        fresh.setattr("importlib.machinery.EXTENSION_SUFFIXES", [".nothing"])
    elif lost == "library":
        fresh.setattr(jpeg_crop, "_LIBRARY_PATTERNS", ())
    elif lost == "stale":
        fresh.setattr(jpeg_crop, "_NATIVE_INTERFACE", 999)
    else:
        fresh.setattr(jpeg_crop, "_library_file", jpeg_crop._native_file)
    with caplog.at_level(logging.WARNING):
        views = [photo_views(kinds(150, 211)["420"], 3) for _ in range(2)]
    assert all(
        not cropped and torch.equal(view, expected)
        for each in views
        for view, expected, cropped in each
    )
    (said,) = [record.getMessage() for record in caplog.records]
    assert "whole decoded images" in said and reason in said


@needs_native
def test_a_library_of_another_interface_is_refused(fresh: pytest.MonkeyPatch) -> None:
    """Pillow's libjpeg has interface 6.2: it must be noticed by the library itself."""
    folder = Path(Image.__file__).parents[1] / "pillow.libs"
    found = sorted(folder.glob("libjpeg*.so.62*"))
    if not found:
        pytest.skip("this Pillow brings no libjpeg 6.2")
    with pytest.raises(jpeg_crop._Unavailable, match="another interface than libjpeg 8"):
        jpeg_crop._load(jpeg_crop._native_file(), found[0])


@needs_native
def test_a_library_with_other_pixels_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(jpeg_crop, "decode_jpeg", lambda *_: torch.zeros(3, 48, 80, dtype=torch.uint8))
    with pytest.raises(jpeg_crop._Unavailable, match="unlike torchvision"):
        jpeg_crop._load(jpeg_crop._native_file(), jpeg_crop._library_file())


@pytest.mark.skipif(
    not os.environ.get("CI") or COMPILER is None, reason="only where `make setup` has just run"
)
def test_continuous_integration_has_the_decoder() -> None:
    """Or every test above would be skipped there without anyone noticing."""
    assert jpeg_cropper() is not None


@pytest.mark.integration
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_sources_compile_without_a_warning(tmp_path: Path) -> None:
    flags = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
    output = tmp_path / "jpeg_crop.so"
    command = [COMPILER, *flags, str(NATIVE / "jpeg_crop.c"), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ctypes.CDLL(str(output)).native_interface() == jpeg_crop._NATIVE_INTERFACE


def test_resizing_without_antialias_takes_single_pixels() -> None:
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    smooth = Resizing("bilinear", True)(stripes, (16, 16))
    assert (smooth[:, :, 2:-2].float() - 127.5).abs().max() < 3
    assert torch.equal(
        Resizing("bilinear", False)(stripes, (32, 32)),
        reference.resize(stripes, [32, 32], antialias=False),
    )


def test_files_of_pillow_are_what_these_tests_say() -> None:
    """Guards the kinds above: each must really be of its kind."""
    for kind, data in kinds(40, 40).items():
        with Image.open(io.BytesIO(data)) as image:
            assert bool(image.info.get("progressive")) == ("progressive" in kind)
            assert image.mode == ("L" if "grey" in kind else "RGB")
        assert (b"\xff\xdd" in data) == ("restart" in kind)
