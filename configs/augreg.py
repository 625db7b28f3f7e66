"""The augmentation levels of AugReg, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AugRegName = Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]


@dataclass(frozen=True)
class AugRegLevel:
    """Mixup's a of Beta(a, a), and RandAugment's layers and magnitude (None: not applied)."""

    mixup: float
    randaugment_layers: int
    randaugment_magnitude: float | None


AUGREG_LEVELS: dict[AugRegName, AugRegLevel] = {
    "none": AugRegLevel(0.0, 0, None),
    "light1": AugRegLevel(0.0, 2, 0.0),
    "light2": AugRegLevel(0.2, 2, 10.0),
    "medium1": AugRegLevel(0.2, 2, 15.0),
    "medium2": AugRegLevel(0.5, 2, 15.0),
    "strong1": AugRegLevel(0.5, 2, 20.0),
    "strong2": AugRegLevel(0.8, 2, 20.0),
}
"""Source: the authors' published configuration of "How to train your ViT" (arXiv:2106.10270) for
ImageNet-21k; there, too, light1 applies RandAugment at magnitude 0."""
