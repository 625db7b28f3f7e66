"""Vision Transformers of any size, patch and input, built on timm's implementation.

The modules and parameter names are timm's, so weights go to and from timm unchanged. Rows of the
size table are in `configs.model_sizes`; sources and parameter counts in docs/models.md.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer

from configs.errors import RefusedInput
from configs.groups import ModelConfig
from configs.model_sizes import SIZES
from models.vit import PreLogitsTransformer

Pool = Literal["token", "mean"]


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of a Vision Transformer's parameters and what it computes.

    Attributes:
        depth: Number of blocks.
        width: Token dimension.
        heads: Attention heads.
        mlp_dim: Hidden dimension of each block's MLP.
        patch_px: Side of a square patch, in pixels.
        image_px: Input (height, width), in pixels.
        num_classes: Outputs of the head; 0 for a model without one.
        pool: What the head sees: the class token, or the mean of the patch tokens.
        class_token: Whether there is a class token; it takes part in attention under either pool.
        norm_after_pool: Mean pool only: normalise after the mean (timm's default for this pool)
            instead of before it (the authors').
        pre_logits: Whether a tanh layer of the same width stands between pool and head.
    """

    depth: int
    width: int
    heads: int
    mlp_dim: int
    patch_px: int
    image_px: tuple[int, int]
    num_classes: int
    pool: Pool = "token"
    class_token: bool = True
    norm_after_pool: bool = False
    pre_logits: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        height, width_px = self.image_px
        if height % self.patch_px or width_px % self.patch_px:
            raise RefusedInput(
                f"image of {height}x{width_px} px is not a multiple of the patch of "
                f"{self.patch_px} px; choose a resolution that is"
            )
        if self.width % self.heads:
            raise RefusedInput(f"{self.heads} heads do not divide the width {self.width}")
        if self.pool == "token" and not self.class_token:
            raise RefusedInput("pool = token needs a class token; use pool = mean")

    @classmethod
    def from_config(cls, config: ModelConfig, num_classes: int) -> Architecture:
        """The architecture that the options ask for; explicit widths win over the size's row."""
        size = SIZES[config.size]
        width = config.width or size.width
        is_tables_width = width == size.width
        mlp_dim = config.mlp_dim or (size.mlp_dim if is_tables_width else 4 * width)
        return cls(
            depth=config.depth or size.depth,
            width=width,
            heads=config.heads or size.heads,
            mlp_dim=mlp_dim,
            patch_px=config.patch_px,
            image_px=(config.image_px, config.image_px),
            num_classes=num_classes,
            pool=config.pool,
            pre_logits=config.pre_logits,
        )

    def with_new_head(self, num_classes: int) -> Architecture:
        """For another task: a head of its own, without a pre-logits layer (as the authors do)."""
        return replace(self, num_classes=num_classes, pre_logits=False)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        return self.image_px[0] // self.patch_px, self.image_px[1] // self.patch_px

    @property
    def num_tokens(self) -> int:
        """Tokens that attend to each other: patches and the class token."""
        return self.grid[0] * self.grid[1] + int(self.class_token)

    def timm_arguments(self) -> dict[str, Any]:
        """Keyword arguments that make timm's VisionTransformer this, but for a pre-logits layer."""
        return {
            "img_size": self.image_px,
            "patch_size": self.patch_px,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            # timm truncates width x ratio to a whole number: aim at its middle, not its edge
            "mlp_ratio": (self.mlp_dim + 0.5) / self.width,
            "num_classes": self.num_classes,
            "global_pool": "token" if self.pool == "token" else "avg",
            "class_token": self.class_token,
            "fc_norm": self.pool == "mean" and self.norm_after_pool,
        }


def build_model(
    architecture: Architecture,
    *,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    head_bias: float = 0.0,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> VisionTransformer:
    """Build a Vision Transformer with the authors' initialisation and a head of zeros.

    Initialisation: timm's "jax" scheme, after the authors' code (Dosovitskiy et al. 2020,
    arXiv:2010.11929): Glorot-uniform matrices, LeCun-normal patch embedding.

    Args:
        architecture: What to build.
        dropout: Rate after the embeddings, the attention projections and inside the MLPs.
        stochastic_depth: Drop rate of the last block; rises linearly from 0 at the first.
        head_bias: Initial bias of every class; the head's weight is zero.
        seed: Seed of the weights, which then depend on nothing else (the number of classes changes
            only the head); the generator of the caller is left as it was. None draws from it.
        device: Where to make the parameters; "meta" makes shapes without memory.
    """
    scope = nullcontext() if seed is None else torch.random.fork_rng(devices=[])
    with scope:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        # Without a head first: drawing one would move the generator by its size.
        model = PreLogitsTransformer(
            **{**architecture.timm_arguments(), "num_classes": 0},
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
            drop_path_rate=stochastic_depth,
            # The authors' scheme; timm's default learns slowly where width is small (decision 5).
            weight_init="jax",
            device=device,
        )
        if architecture.pre_logits:
            model.add_pre_logits(device)
        model.reset_classifier(architecture.num_classes)
    if architecture.num_classes:
        reset_head(model, head_bias)
    return model


def reset_head(model: VisionTransformer, bias: float = 0.0) -> None:
    """Set the head's weight to zero and its bias to `bias`."""
    assert isinstance(model.head, torch.nn.Linear), "a model with classes has a linear head"
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, bias)


def choose_attention(device_type: str) -> None:
    """Choose the attention kernel of models built from now on, by device ("cpu", "cuda").

    PyTorch's fused attention is slow in the backward pass on CPU (numbers in docs/models.md);
    elsewhere it is faster and takes less memory.
    """
    set_fused_attn(enable=device_type != "cpu")


def fuse_attention(model: VisionTransformer, enable: bool) -> None:
    """Choose the attention kernel of one model that was built already."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = enable  # type: ignore[assignment]
