"""Position embeddings at a new input size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

Grid = tuple[int, int]
ResizeMethod = Literal["linear", "bicubic"]


def resize_position_embedding(
    pos_embed: torch.Tensor,
    old_grid: Grid,
    new_grid: Grid,
    num_prefix_tokens: int,
    method: ResizeMethod = "linear",
) -> torch.Tensor:
    """Resize the patch part of a position embedding; the prefix (class token) stays as it is.

    Args:
        pos_embed: Shape (1, P + rows * columns, D), P prefix tokens first.
        old_grid: (rows, columns) it was made for. Always given: a number of tokens does not say.
        new_grid: (rows, columns) wanted.
        num_prefix_tokens: P.
        method: "linear", the authors' corner-aligned zoom, or "bicubic", timm's, antialiased.

    Returns:
        Shape (1, P + new rows * new columns, D), same dtype.

    Raises:
        ValueError: The number of tokens is not the prefix plus the old grid.

    Source: the checkpoint loading of the authors' published code (arXiv:2010.11929, section 3.2),
    which calls scipy's zoom of order 1.
    """
    rows, columns = old_grid
    tokens = pos_embed.shape[1]
    if tokens != num_prefix_tokens + rows * columns:
        raise ValueError(
            f"position embedding of {tokens} tokens is not {num_prefix_tokens} prefix tokens "
            f"and a grid of {rows}x{columns} patches; give the grid it was trained with"
        )
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed.clone()
    if method == "bicubic":
        return resample_abs_pos_embed(
            pos_embed,
            new_size=list(new_grid),
            old_size=list(old_grid),
            num_prefix_tokens=num_prefix_tokens,
        )
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    # In fp64: torch works out sampling points in the input's precision, and fp32 is off by 2e-6.
    image = patches.double().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=tuple(new_grid), mode="bilinear", align_corners=True)
    flat = resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix, flat], dim=1)
