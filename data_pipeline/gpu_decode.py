"""Views of JPEG files decoded and resized on an NVIDIA GPU: `data.decode: cuda`.

torchvision's nvJPEG decoder decodes a whole image; crop and resize follow on the GPU, in a stream
of each decoding thread's own, and the view comes back into the batch. Only files whose crops the
native decoder would take (jpeg_crop.py) come here, and what the GPU refuses is decoded on the CPU.
"""

from __future__ import annotations

import threading

import torch
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from data_pipeline.jpeg_crop import Box, jpeg_cropper
from data_pipeline.resizing import Resizing

_TEST_PICTURE = (32, 48)


class GpuDecoder:
    """Decodes, crops and resizes on a device; any number of threads may share one."""

    def __init__(self, device: torch.device, resizing: Resizing) -> None:
        """Make no stream yet: each thread makes its own at its first image."""
        self._device = device
        self._resizing = resizing
        self._of_thread = threading.local()

    def view(self, data: bytearray, box: Box, size: tuple[int, int]) -> torch.Tensor | None:
        """The box of an image, resized to `size`, uint8 (3, height, width) in host memory.

        Returns:
            None if the GPU's decoder refuses the file.
        """
        with torch.cuda.stream(self._stream()):
            file = torch.frombuffer(data, dtype=torch.uint8)
            try:
                image = decode_jpeg(file, ImageReadMode.RGB, device=self._device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                return None
            # Back into host memory in this stream: the copy ends before the thread goes on.
            return self._resized(box.cut(image), size).cpu()

    def _resized(self, part: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if tuple(part.shape[1:]) == size:
            return part
        mode, antialias = self._resizing
        # In float, because CUDA resizes no bytes; a cubic overshoots, hence the clamp.
        found = interpolate(part[None].float(), size=size, mode=mode, antialias=antialias)[0]
        return found.round_().clamp_(0, 255).to(torch.uint8)

    def _stream(self) -> torch.cuda.Stream | None:
        if self._device.type != "cuda":
            return None
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self._device)
        stream: torch.cuda.Stream = self._of_thread.stream
        return stream


def gpu_decoder(augment: AugmentConfig) -> GpuDecoder:
    """The decoder of the current GPU.

    Raises:
        RefusedInput: there is no GPU, torchvision cannot decode on it, or the views are not area
            crops.
    """
    wish, instead = "data.decode = cuda", "set data.decode to cpu"
    if augment.crop != "area":
        raise RefusedInput(
            f"{wish} decodes area crops only, and augment.crop is {augment.crop}; {instead}"
        )
    if not torch.cuda.is_available():
        raise RefusedInput(f"{wish} needs an NVIDIA GPU, and torch sees none; {instead}")
    if jpeg_cropper() is None:
        raise RefusedInput(
            f"{wish} needs the native decoder, which tells what a GPU may decode; build it with "
            f"`make setup`, or {instead}"
        )
    # The number is fixed here: a new thread's current device is always the first.
    device = torch.device("cuda", torch.cuda.current_device())
    decoder = GpuDecoder(device, Resizing.of(augment))
    picture = encode_jpeg(torch.full((3, *_TEST_PICTURE), 90, dtype=torch.uint8))
    if decoder.view(bytearray(picture.numpy().tobytes()), Box(0, 0, 8, 8), (8, 8)) is None:
        raise RefusedInput(
            f"{wish}: this torchvision cannot decode JPEG files on {device}; {instead}"
        )
    return decoder
