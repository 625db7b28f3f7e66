"""What happens to a micro batch on the device: RandAugment on its bytes, then mixup."""

from __future__ import annotations

import torch

from configs.data_groups import AugmentConfig
from training.mixup import Mixup, mixup_share, pairing
from training.rand_augment import RandAugment


class BatchAugmentation:
    """RandAugment and mixup as the options say; does nothing where they say none.

    Args:
        augment: `level` and what overrides it.
        seed: of all draws.
        global_images: images of a step.
        world_size: number of ranks.
        micro_images: images of a micro batch of one rank.
    """

    def __init__(
        self,
        augment: AugmentConfig,
        seed: int,
        *,
        global_images: int,
        world_size: int,
        micro_images: int,
    ) -> None:
        """Fix what does not depend on the images."""
        self._alpha = augment.mixup_alpha
        self._seed = seed
        self._pairing = pairing(global_images, world_size, micro_images)
        strength = augment.randaugment
        self._rand_augment = RandAugment(*strength, seed) if strength else None

    def rand_augment(self, images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Change each image by what its position draws.

        Args:
            images: uint8 (batch, 3, height, width), on any device; may be written to.
            positions: int64 (batch,), on the CPU.
        """
        if self._rand_augment is None:
            return images
        return self._rand_augment(images, positions.numpy())

    def mixup(self, step: int) -> Mixup:
        """How the micro batches of a step are mixed."""
        return Mixup(mixup_share(self._alpha, self._seed, step), self._pairing)
