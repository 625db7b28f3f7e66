"""The size table: one row per Vision Transformer, its numbers and where they come from.

It lives with the configuration, not with the models, because options are checked against it before
torch is imported. Patch size, input size and head are chosen separately (`models.zoo`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """Depth and widths of one Vision Transformer.

    Attributes:
        depth: Number of transformer blocks.
        width: Token dimension.
        heads: Attention heads; `width` is a multiple of it.
        mlp_dim: Hidden dimension of each block's MLP.
        source: Paper and table the row is from.
    """

    depth: int
    width: int
    heads: int
    mlp_dim: int
    source: str


_AUGREG = "Steiner et al. 2021, arXiv:2106.10270, and the authors' published configs"
_VIT = "Dosovitskiy et al. 2020, arXiv:2010.11929, Table 1"

SIZES: dict[str, ModelSize] = {
    "ti": ModelSize(depth=12, width=192, heads=3, mlp_dim=768, source=_AUGREG),
    "s": ModelSize(depth=12, width=384, heads=6, mlp_dim=1536, source=_AUGREG),
    "b": ModelSize(depth=12, width=768, heads=12, mlp_dim=3072, source=_VIT),
    "l": ModelSize(depth=24, width=1024, heads=16, mlp_dim=4096, source=_VIT),
    "h": ModelSize(depth=32, width=1280, heads=16, mlp_dim=5120, source=_VIT),
}
