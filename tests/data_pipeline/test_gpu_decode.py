"""`data.decode: cuda`: the path of a view, and every refusal; the CPU stands in for the GPU."""

import pytest
import torch

from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from data_pipeline import gpu_decode
from data_pipeline.augment import Crop, TrainTransform
from data_pipeline.broken import BrokenImage
from data_pipeline.gpu_decode import GpuDecoder, gpu_decoder
from data_pipeline.jpeg_crop import Box, jpeg_cropper
from data_pipeline.resizing import Resizing
from tests.data_pipeline.sample_shards import encode

MAX_PIXELS = 1_000_000
SIZE = (24, 32)
PHOTO = torch.nn.functional.interpolate(
    torch.rand((1, 3, 9, 11), generator=torch.Generator().manual_seed(1)), (120, 150)
)
FILE = encode((PHOTO[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy(), "JPEG")
needs_native = pytest.mark.skipif(
    jpeg_cropper() is None, reason="the native decoder is not built (make setup)"
)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """Let transforms take a decoder on the CPU for one on a GPU; gives the boxes asked for."""
    asked: list[Box] = []

    class Noted(GpuDecoder):
        def view(self, data: bytearray, box: Box, size: tuple[int, int]) -> torch.Tensor | None:
            asked.append(box)
            return super().view(data, box, size)

    def make(augment: AugmentConfig) -> GpuDecoder:
        return Noted(torch.device("cpu"), Resizing.of(augment))

    monkeypatch.setattr("data_pipeline.augment.gpu_decoder", make)
    return asked


def view(transform: TrainTransform, data: bytes, position: int) -> torch.Tensor:
    out = torch.empty((3, *SIZE), dtype=torch.uint8)
    transform(transform.decode(bytearray(data), position, max_pixels=MAX_PIXELS), position, out)
    return out


@needs_native
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_views_are_those_of_the_cpu_up_to_rounding(
    interpolation: str, antialias: bool, stand_in: list[Box]
) -> None:
    augment = AugmentConfig(interpolation=interpolation, antialias=antialias, dct_scaling=False)
    on_gpu = TrainTransform(augment, SIZE, 3, decode="cuda")
    on_cpu = TrainTransform(augment, SIZE, 3)
    for position in range(20):
        found, expected = (view(each, FILE, position).int() for each in (on_gpu, on_cpu))
        difference = (found - expected).abs()
        # On bytes torch rounds and clamps between columns and rows; a cubic's overshoot shows it.
        assert difference.float().mean() < 1 and difference.max() <= 16
    assert len(stand_in) == 20


def test_a_crop_of_the_views_own_size_is_not_resized() -> None:
    decoder = GpuDecoder(torch.device("cpu"), Resizing())
    box = Box(8, 16, *SIZE)
    whole = decoder.view(bytearray(FILE), Box(0, 0, 120, 150), (120, 150))
    assert torch.equal(decoder.view(bytearray(FILE), box, SIZE), box.cut(whole))


def test_a_cubic_that_overshoots_is_clamped() -> None:
    stripes = torch.zeros((3, 16, 16), dtype=torch.uint8)
    stripes[:, :, 8:] = 255
    found = GpuDecoder(torch.device("cpu"), Resizing())._resized(stripes, (64, 64))
    # Without the clamp, -10 and 265 would come out as 246 and 9.
    assert found[:, :, :28].max() <= 20 and found[:, :, 36:].min() >= 235


@needs_native
def test_what_the_gpu_refuses_is_decoded_on_the_cpu(
    stand_in: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("nvjpegDecode failed")

    monkeypatch.setattr(gpu_decode, "decode_jpeg", refuse)
    augment = AugmentConfig()
    transforms = [TrainTransform(augment, SIZE, 3, decode="cuda"), TrainTransform(augment, SIZE, 3)]
    found, expected = (view(transform, FILE, 5) for transform in transforms)
    assert torch.equal(found, expected) and len(stand_in) == 1


@needs_native
def test_a_gpu_without_memory_is_not_a_refused_file(
    stand_in: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_decode, "decode_jpeg", full)
    with pytest.raises(torch.OutOfMemoryError):
        view(TrainTransform(AugmentConfig(), SIZE, 3, decode="cuda"), FILE, 5)


@needs_native
@pytest.mark.parametrize("data", [FILE[: len(FILE) // 2], b"no image", b""])
def test_broken_files_never_reach_the_gpu(data: bytes, stand_in: list[Box]) -> None:
    transforms = [TrainTransform(AugmentConfig(), SIZE, 3, decode=on) for on in ("cuda", "cpu")]
    for transform in transforms:
        with pytest.raises(BrokenImage):
            transform.decode(bytearray(data), 0, max_pixels=MAX_PIXELS)
    assert stand_in == []


@needs_native
def test_too_many_pixels_are_refused_by_the_header(stand_in: list[Box]) -> None:
    transform = TrainTransform(AugmentConfig(), SIZE, 3, decode="cuda")
    with pytest.raises(BrokenImage, match="max_image_pixels"):
        transform.decode(bytearray(FILE), 0, max_pixels=120 * 150 - 1)
    assert stand_in == []


def test_png_files_are_decoded_on_the_cpu(stand_in: list[Box]) -> None:
    data = encode((PHOTO[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy(), "PNG")
    transform = TrainTransform(AugmentConfig(), SIZE, 3, decode="cuda")
    assert not isinstance(transform.decode(bytearray(data), 0, max_pixels=MAX_PIXELS), Crop)
    assert stand_in == []


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RefusedInput, match=r"data\.decode = cuda needs an NVIDIA GPU.*to cpu"):
        TrainTransform(AugmentConfig(), SIZE, 3, decode="cuda")


def test_other_crops_are_refused() -> None:
    with pytest.raises(RefusedInput, match=r"augment\.crop is none"):
        gpu_decoder(AugmentConfig(crop="none"))


def test_without_the_native_decoder_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_decode, "jpeg_cropper", lambda: None)
    with pytest.raises(RefusedInput, match="make setup"):
        gpu_decoder(AugmentConfig())


@pytest.mark.parametrize("works", [True, False])
def test_a_torchvision_without_nvjpeg_is_refused(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(gpu_decode, "jpeg_cropper", lambda: object())
    pixels = torch.zeros((3, 8, 8), dtype=torch.uint8) if works else None
    monkeypatch.setattr(GpuDecoder, "view", lambda *_: pixels)
    if works:
        assert gpu_decoder(AugmentConfig())._device == torch.device("cuda:1")
    else:
        with pytest.raises(RefusedInput, match="cannot decode JPEG files on cuda:1"):
            gpu_decoder(AugmentConfig())


@needs_native
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_views_are_near_those_of_the_cpu() -> None:
    augment = AugmentConfig(dct_scaling=False)
    on_gpu = TrainTransform(augment, SIZE, 3, decode="cuda")
    on_cpu = TrainTransform(augment, SIZE, 3)
    for position in range(20):
        found, expected = (view(each, FILE, position).float() for each in (on_gpu, on_cpu))
        assert (found - expected).abs().mean() < 3
