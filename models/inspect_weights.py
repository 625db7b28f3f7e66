"""The architecture of weights, from the names and shapes of their tensors."""

from __future__ import annotations

import math

from configs.errors import RefusedInput
from configs.model_sizes import SIZES
from models.weights_card import StateDict
from models.zoo import Architecture, Pool

# Seen in relatives of the plain Vision Transformer, which compute something else.
_FOREIGN_PARTS = (
    ".ls1.",
    ".ls2.",
    ".q_norm.",
    ".k_norm.",
    "dist_token",
    "reg_token",
    "attn_pool.",
    "norm_pre.",
)


def infer_architecture(
    state_dict: StateDict,
    source: str,
    *,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
    pool: Pool | None = None,
) -> tuple[Architecture, tuple[str, ...]]:
    """Read the architecture off the tensors of a timm state dict.

    Args:
        state_dict: Tensors by timm's names.
        source: Where they came from, for messages.
        heads: Attention heads, where something says; no shape shows them.
        grid: (rows, columns) of patches, where something says; a number of tokens does not.
        pool: What the head sees, where something says.

    Returns:
        The architecture, and a sentence for everything that was concluded, not read.

    Raises:
        RefusedInput: Not a plain Vision Transformer, or the heads or grid cannot be concluded.
    """
    _check_is_plain_vit(state_dict, source)
    width, _, patch_px, _ = state_dict["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state_dict if name.startswith("blocks.")})
    of_heads: tuple[str, ...] = ()
    if heads is None:
        heads = _conclude_heads(width, depth, source)
        of_heads = (f"{heads} attention heads, as in the size table for width {width}",)
    grid, of_grid = (grid, ()) if grid is not None else _square_grid(state_dict, source)
    pool, of_pool = (pool, ()) if pool is not None else _likely_pool(state_dict)
    architecture = Architecture(
        depth=depth,
        width=width,
        heads=heads,
        mlp_dim=state_dict["blocks.0.mlp.fc1.weight"].shape[0],
        patch_px=patch_px,
        image_px=(grid[0] * patch_px, grid[1] * patch_px),
        num_classes=_num_outputs(state_dict),
        pool=pool,
        class_token="cls_token" in state_dict,
        norm_after_pool="fc_norm.weight" in state_dict,
        pre_logits="pre_logits.fc.weight" in state_dict,
    )
    return architecture, (*of_heads, *of_grid, *of_pool)


def _square_grid(state_dict: StateDict, source: str) -> tuple[tuple[int, int], tuple[str, ...]]:
    """The grid (rows, columns) if it is square, and that this was concluded."""
    num_patches = state_dict["pos_embed"].shape[1] - int("cls_token" in state_dict)
    side = _conclude_side(num_patches, source)
    return (side, side), (f"a square grid of {side}x{side} patches, from {num_patches} positions",)


def _likely_pool(state_dict: StateDict) -> tuple[Pool, tuple[str, ...]]:
    """What the head sees, by the tensors that are there, and what of it was concluded."""
    if "cls_token" in state_dict and "fc_norm.weight" not in state_dict:
        return "token", ("that the head sees the class token",)
    return "mean", ()


def _num_outputs(state_dict: StateDict) -> int:
    return state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 0


def _check_is_plain_vit(state_dict: StateDict, source: str) -> None:
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in state_dict]
    if missing:
        some = ", ".join(sorted(state_dict)[:3]) or "nothing"
        raise RefusedInput(
            f"{source} holds no Vision Transformer under timm's names: {missing[0]} is missing "
            f"(it holds {some}, ...)"
        )
    if state_dict["patch_embed.proj.weight"].ndim != 4 or state_dict["pos_embed"].ndim != 3:
        raise RefusedInput(
            f"{source} has a patch or position embedding of an unknown shape: vitrain reads a "
            "convolution over patches and positions in one row"
        )
    foreign = [name for name in state_dict for part in _FOREIGN_PARTS if part in name]
    if foreign:
        raise RefusedInput(
            f"{source} is a relative of the plain Vision Transformer that vitrain does not build: "
            f"it has {foreign[0]}"
        )


def _conclude_heads(width: int, depth: int, source: str) -> int:
    rows = [size.heads for size in SIZES.values() if size.width == width]
    if not rows:
        raise RefusedInput(
            f"{source} has width {width} and depth {depth}, which is no row of the size table, and "
            "carries no model.json, so its number of attention heads is unknown; export it with "
            "vitrain, or give weights that carry a card"
        )
    return rows[0]


def _conclude_side(num_patches: int, source: str) -> int:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise RefusedInput(
            f"{source} has position embeddings for {num_patches} patches, which is not a square, "
            "and carries no model.json that gives the grid; export it with vitrain"
        )
    return side
