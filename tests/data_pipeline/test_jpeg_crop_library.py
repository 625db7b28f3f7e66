"""Without the native decoder, with another one, and how it compiles."""

import ctypes
import logging
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_pipeline import jpeg_crop
from data_pipeline.jpeg_crop import jpeg_cropper
from tests.data_pipeline.jpeg_photographs import kinds, needs_native, photo_views

NATIVE = Path(jpeg_crop.__file__).parent / "native"


COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])


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
