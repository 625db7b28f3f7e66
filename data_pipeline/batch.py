"""What a loader hands over: images, labels and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

PADDING_LABEL = -1
PADDING_ROW = -1


@dataclass(eq=False)
class Batch:
    """Images of one micro batch of one rank.

    `images` uint8 (batch, 3, height, width); `labels`, `positions` and `rows` int64 (batch,). Where
    images have label sets, `labels` are int8 (batch, classes): 1 verified to be there, 0 verified
    to be absent, -1 unknown. Rows and labels are those of the image that is really there, so a
    substitute's where one stands in. Padding of an evaluation has label -1 (throughout), row -1 and
    black pixels. `wait_seconds` is how long the consumer waited.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    wait_seconds: float = 0.0
    _copy: DeviceCopy | None = field(default=None, init=False, repr=False)

    @classmethod
    def empty(
        cls, positions: np.ndarray, image_size: tuple[int, int], set_classes: int | None = None
    ) -> Batch:
        """Allocate a batch, pinned where there is a GPU, for the given positions.

        With `set_classes`, labels are sets over so many classes. Labels and rows start as padding;
        the pixels hold whatever was there.
        """
        count, pin = len(positions), _has_gpu()
        shape = (count,) if set_classes is None else (count, set_classes)
        kind = torch.int64 if set_classes is None else torch.int8
        return cls(
            images=torch.empty((count, 3, *image_size), dtype=torch.uint8, pin_memory=pin),
            labels=torch.full(shape, PADDING_LABEL, dtype=kind, pin_memory=pin),
            positions=torch.from_numpy(positions),
            rows=torch.full((count,), PADDING_ROW, dtype=torch.int64),
        )

    def set_source(self, slot: int, row: int, label: int | NDArray[np.int8]) -> None:
        """Note which image is in a slot."""
        # Through numpy: assigning to an element of a tensor takes microseconds.
        self.rows.numpy()[slot] = row
        self.labels.numpy()[slot] = label

    def begin_copy(self, device: torch.device) -> None:
        """Start the copy to a GPU beside what it computes; elsewhere, or once started, do nothing.

        The batch must be filled, and keep its images and labels from now on.
        """
        if device.type == "cuda" and self._copy is None:
            self._copy = DeviceCopy(self, device)

    def to(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels on `device`, without waiting for the copy; that of `begin_copy`, once.

        Safe without any synchronisation: PyTorch's allocator of pinned memory gives a block out
        again only after the copies that were started from it have ended.
        """
        copy, self._copy = self._copy, None  # so that the device's memory is not held twice as long
        if copy is not None and copy.device == torch.device(device):
            return copy.take()
        return _copied(self, device)


class DeviceCopy:
    """Images and labels of a batch on their way to a GPU, in a stream of their own.

    The stream in which training computes has the next batch without a gap, and the copy engines
    work while it computes.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        """Start."""
        self.device = device
        stream = _copy_stream(device)
        with torch.cuda.stream(stream):
            self._tensors = _copied(batch, device)
            self._ended = torch.cuda.Event()
            self._ended.record(stream)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors, for the current stream, which waits for the copy; the host does not."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._ended)
        for tensor in self._tensors:
            # Their memory belongs to the copying stream, which must not reuse it too early.
            tensor.record_stream(stream)
        return self._tensors


def _copied(batch: Batch, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        batch.images.to(device, non_blocking=True),
        batch.labels.to(device, non_blocking=True),
    )


@lru_cache(maxsize=1)  # one GPU a process
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()
