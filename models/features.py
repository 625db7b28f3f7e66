"""Features of a Vision Transformer: what its head is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def head_inputs(model: nn.Module) -> Iterator[Callable[[], torch.Tensor]]:
    """Keep the pre-logits features of every forward pass while the block runs.

    The whole model is to be called as ever (by DeepSpeed's engine, say): only so are weights that
    ZeRO 3 has divided among the ranks there when they are needed. Compiled models run uncompiled
    meanwhile, since a compiled one does not see a hook that comes later.

    Args:
        model: timm's, bare; its `head` may be the identity.

    Yields:
        A function that gives the features (batch, width) of the last forward pass, once.
    """
    kept: list[torch.Tensor] = []
    hook = model.get_submodule("head").register_forward_pre_hook(
        lambda _module, inputs: kept.append(inputs[0])
    )
    try:
        with _uncompiled():
            yield kept.pop
    finally:
        hook.remove()


def _uncompiled() -> AbstractContextManager[None]:
    # Importing dynamo takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
