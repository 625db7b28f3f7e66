"""What a loader hands over: images, labels and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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

    def to(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels on `device`, without waiting for the copy.

        Safe without any synchronisation: PyTorch's allocator of pinned memory gives a block out
        again only after the copies that were started from it have ended.
        """
        return (
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()
