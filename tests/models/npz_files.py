"""Synthetic checkpoints in the authors' two layouts, for a model of any size."""

import numpy as np

OLDER = {
    "prefix": "",
    "position": "Transformer/posembed_input/pos_embedding",
    "parts": ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
}
NEWER = {
    "prefix": "params/",
    "position": "pos_embedding",
    "parts": ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}


def make_arrays(architecture, layout, seed=0, *, class_token=True, position_of_class=True):
    """Random arrays under the names and shapes of a published checkpoint."""
    generator = np.random.default_rng(seed)
    a, width = architecture, architecture.width
    rows, columns = a.grid
    per_head = (a.heads, width // a.heads)

    def draw(*shape):
        return generator.standard_normal(shape).astype(np.float32) * 0.1

    num_positions = rows * columns + int(class_token and position_of_class)
    arrays = {
        "embedding/kernel": draw(a.patch_px, a.patch_px, 3, width),
        "embedding/bias": draw(width),
        layout["position"]: draw(1, num_positions, width),
        "Transformer/encoder_norm/scale": draw(width),
        "Transformer/encoder_norm/bias": draw(width),
        "head/kernel": draw(width, a.num_classes),
        "head/bias": draw(a.num_classes),
    }
    if class_token:
        arrays["cls"] = draw(1, 1, width)
    norm1, attention, norm2, mlp = layout["parts"]
    for index in range(a.depth):
        block = f"Transformer/encoderblock_{index}"
        for norm in (norm1, norm2):
            arrays[f"{block}/{norm}/scale"] = draw(width)
            arrays[f"{block}/{norm}/bias"] = draw(width)
        for part in ("query", "key", "value"):
            arrays[f"{block}/{attention}/{part}/kernel"] = draw(width, *per_head)
            arrays[f"{block}/{attention}/{part}/bias"] = draw(*per_head)
        arrays[f"{block}/{attention}/out/kernel"] = draw(*per_head, width)
        arrays[f"{block}/{attention}/out/bias"] = draw(width)
        arrays[f"{block}/{mlp}/Dense_0/kernel"] = draw(width, a.mlp_dim)
        arrays[f"{block}/{mlp}/Dense_0/bias"] = draw(a.mlp_dim)
        arrays[f"{block}/{mlp}/Dense_1/kernel"] = draw(a.mlp_dim, width)
        arrays[f"{block}/{mlp}/Dense_1/bias"] = draw(width)
    return {layout["prefix"] + name: array for name, array in arrays.items()}
