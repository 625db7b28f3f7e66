"""Mixup: each image and its target become a weighted mean of themselves and a partner's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.counter_draws import draws_key, uniform_draws

if TYPE_CHECKING:  # a plan asks who is mixed with whom before torch is imported
    import torch

# How far apart partners stand, as a share of the global batch: as many ranks as fit into it may
# share the batch, and up to half as many micro batches, without a change of partners.
_PARTNERS_APART = 32


@dataclass(frozen=True)
class Pairing:
    """Who is mixed with whom in a micro batch of one rank.

    The micro batch is cut into blocks of `block` images; within one, the partner of an image is
    the one `shift` places before it, cyclically. `holds_elsewhere`: other splits of the global
    batch into ranks and micro batches have the same partners.
    """

    block: int
    shift: int
    holds_elsewhere: bool = False

    def partners(self, values: torch.Tensor) -> torch.Tensor:
        """The values of each image's partner; (batch, ...) like `values`."""
        blocks = values.unflatten(0, (-1, self.block))
        return blocks.roll(self.shift, dims=1).flatten(0, 1)

    def notice(self) -> str | None:
        """What people should know who mean to go on with another number of ranks."""
        if self.holds_elsewhere:
            return None
        return (
            f"mixup pairs the images of micro batches of {self.block}: with another number of "
            "ranks or micro batch size it would pair others (docs/augmentation.md)"
        )


def pairing(global_images: int, world_size: int, micro_images: int) -> Pairing:
    """Partners that stand a fixed number of positions apart, wherever that can be.

    They are global_images / 32 positions apart if the ranks divide that number and twice it divides
    the images of all ranks' micro batches; every such split into ranks and micro batches mixes the
    same images. Any other split pairs across half of its own micro batch.
    """
    apart, rest = divmod(global_images, _PARTNERS_APART)
    if rest == 0 and apart % world_size == 0 and world_size * micro_images % (2 * apart) == 0:
        shift = apart // world_size
        return Pairing(block=2 * shift, shift=shift, holds_elsewhere=True)
    return Pairing(block=micro_images, shift=micro_images // 2)


def mixup_share(alpha: float, seed: int, step: int) -> float:
    """The share that every image of a step keeps of itself, in [0.5, 1]; 1 if `alpha` is 0.

    max(s, 1 - s) for s drawn from Beta(alpha, alpha), a function of (seed, step): equal on all
    ranks and in all micro batches of the step.

    Source: mixup, arXiv:1710.09412; one share a step, at least a half, as the published code of
    "How to train your ViT" (arXiv:2106.10270) has it.
    """
    if alpha == 0.0:
        return 1.0
    from scipy.special import betaincinv

    draw = uniform_draws(draws_key("mixup", seed), np.array([step]), 1)
    share = float(betaincinv(alpha, alpha, draw.item()))
    return max(share, 1.0 - share)


@dataclass(frozen=True)
class Mixup:
    """Mixing of one step's micro batches; a share of 1 leaves everything as it is."""

    share: float
    pairing: Pairing

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Own values x share + partner's x (1 - share); floating point (batch, ...)."""
        if self.share == 1.0:
            return values
        return values * self.share + self.pairing.partners(values) * (1.0 - self.share)

    def loss(
        self,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        logits: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """The same mean of the losses against own and partner's labels; a scalar.

        For cross-entropies, which are linear in their targets, this is the loss against mixed
        targets. It also says what mixing means where some labels are not known: a class that is
        known of one of the two images counts with that image's share.
        """
        own = loss_of(logits, labels)
        if self.share == 1.0:
            return own
        others = loss_of(logits, self.pairing.partners(labels))
        return own * self.share + others * (1.0 - self.share)
