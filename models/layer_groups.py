"""Parameters by the part of a Vision Transformer that they belong to, from its input to its end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

MOST_BLOCK_GROUPS = 12
EMBEDDING, HEAD = "patch_embedding", "head"
# `torch.compile` and wrappers put a prefix before the names; timm's own begin after it.
_EMBEDDING = re.compile(r"(?:^|\.)(?:patch_embed|cls_token|reg_token|pos_embed)(?:\.|$)")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def layer_groups(names: Iterable[str]) -> dict[str, str]:
    """The group of each parameter, in the order of the groups from input to output.

    "patch_embedding" (with class token and position embedding), "block_00" and so on, "head" (with
    the last norm and whatever else follows the blocks). More than 12 blocks are joined, neighbours
    with neighbours, into at most 12 groups: "blocks_00-01" and so on.

    Args:
        names: As `model.named_parameters()` has them.
    """
    listed = list(names)
    blocks = {name: int(found[1]) for name in listed if (found := _BLOCK.search(name))}
    depth = max(blocks.values(), default=-1) + 1
    joined = max(1, math.ceil(depth / MOST_BLOCK_GROUPS))
    embedding = {name: EMBEDDING for name in listed if _EMBEDDING.search(name)}
    in_order = sorted(blocks, key=blocks.__getitem__)
    middle = {name: _of_block(blocks[name], joined, depth) for name in in_order}
    rest = {name: HEAD for name in listed if name not in embedding and name not in middle}
    return embedding | middle | rest


def _of_block(number: int, joined: int, depth: int) -> str:
    first = number // joined * joined
    last = min(first + joined, depth) - 1
    return f"block_{first:02d}" if joined == 1 else f"blocks_{first:02d}-{last:02d}"
