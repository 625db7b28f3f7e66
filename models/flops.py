"""Floating-point operations of a Vision Transformer, counted from its dimensions."""

from models.zoo import Architecture


def forward_flops_per_image(architecture: Architecture) -> float:
    """FLOPs of the forward pass of one image; a multiply-add counts as two.

    Matrix products only (patch embedding, attention, MLP, head), as is usual for model FLOPs
    utilisation: norms, activations and the softmax are not counted.
    """
    tokens = architecture.num_tokens
    width = architecture.width
    rows, columns = architecture.grid
    patch = rows * columns * 3 * architecture.patch_px**2 * width
    projections = 4 * tokens * width**2  # query, key, value and output
    attention = 2 * tokens**2 * width  # scores, then the weighted sum of values
    mlp = 2 * tokens * width * architecture.mlp_dim
    head = width * (architecture.num_classes + width * architecture.pre_logits)
    return 2.0 * (patch + architecture.depth * (projections + attention + mlp) + head)
