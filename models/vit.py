"""What our Vision Transformers add to timm's: a pre-logits layer and blocks that run twice."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from timm.layers import lecun_normal_
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint


class RecomputableBlock(Block):
    """timm's block, which may keep its input only and run again in the backward pass.

    Attributes:
        recompute: Whether it does (Chen et al. 2016, arXiv:1604.06174). The random numbers of the
            first run are drawn again in the second, so results do not change.
    """

    recompute: bool = False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Tokens (batch, tokens, dim) to the same shape."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().forward, x, *args, use_reentrant=False, **kwargs)
        return super().forward(x, *args, **kwargs)


class PreLogitsTransformer(VisionTransformer):
    """timm's Vision Transformer with a place for a layer between pool and head, empty at first.

    timm had it, under the names that it has here, until its version 0.6.
    """

    def __init__(self, **arguments: Any) -> None:
        """As timm's."""
        super().__init__(block_fn=RecomputableBlock, **arguments)
        self.pre_logits: nn.Module = nn.Identity()

    def add_pre_logits(self, device: torch.device | str) -> None:
        """Put a tanh layer of the model's width in, initialised as the authors' is (LeCun)."""
        linear = nn.Linear(self.embed_dim, self.embed_dim, device=device)
        lecun_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.pre_logits = nn.Sequential(OrderedDict(fc=linear, act=nn.Tanh()))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens (batch, tokens, dim) to logits (batch, classes), or to what the head sees."""
        x = self.pre_logits(super().forward_head(x, pre_logits=True))
        return x if pre_logits else self.head(x)


def checkpoint_blocks(model: nn.Module, every: int) -> None:
    """Let every k-th block, from the first on, run again in the backward pass; 0 lets none."""
    blocks = [module for module in model.modules() if isinstance(module, RecomputableBlock)]
    for index, block in enumerate(blocks):
        block.recompute = every > 0 and index % every == 0


def num_recomputed(depth: int, every: int) -> int:
    """Blocks of `depth` that `checkpoint_blocks` lets run again."""
    return -(-depth // every) if every else 0
