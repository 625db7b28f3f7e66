"""Which parameters decay."""

from typing import Any

from torch import nn

_EMBEDDINGS = frozenset({"pos_embed", "cls_token", "reg_token"})


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer parameter groups: weight matrices decay, everything else does not.

    Biases, norms, the class token and position embeddings are left alone, as in the authors' code
    (arXiv:2010.11929). Parameters that need no gradient are in neither group.

    Returns:
        Two groups with "name" ("decay", "no_decay"), "params" and "weight_decay", in model order.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in _EMBEDDINGS
        (decay if is_matrix else no_decay).append(parameter)
    return [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
