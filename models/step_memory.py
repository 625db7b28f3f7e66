"""Memory that a forward and a backward pass take, read from the model itself.

The pass runs on torch's meta device, where tensors have shapes and no memory: every tensor that
the real pass would make is made and freed in the real order, so nothing is derived by hand. What
GPU kernels keep differs from what a CPU's keep; `gpu_kernels` puts the shapes of the former in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one forward and backward pass, beside weights and gradients.

    Attributes:
        saved: Alive between the two passes: what the backward pass needs, input and loss included.
        peak: The most alive at once in either pass, with the workspace of the operations.
    """

    saved: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors made inside the block that are still alive, on any device.

    Args:
        known: Tensors that were there before, which do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        """See the class."""
        super().__init__()
        self.now = 0
        self.peak = 0
        # The storages themselves are not held: an address may come back once its owner is gone.
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._see(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and look at what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, counts=True)
        self.peak = max(self.peak, self.now)
        return result

    def _see(self, tensor: torch.Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if counts else 0
        self.now += size

        def forget(_: Any) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, forget)


def measure_step(
    model: torch.nn.Module, loss_of_step: Callable[[], torch.Tensor], *, as_on_gpu: bool = False
) -> StepMemory:
    """Run `loss_of_step` and its backward pass, and count.

    A parameter's gradient is dropped once it is complete, as where it is added to a buffer.

    Args:
        model: Its parameters and buffers do not count. On the meta device nothing is computed.
        loss_of_step: Makes the input and gives back the loss, a scalar.
        as_on_gpu: Count what CUDA's kernels keep (`gpu_kernels`) instead of this device's.
    """

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    with ExitStack() as stack:
        for parameter in model.parameters():
            stack.callback(parameter.register_post_accumulate_grad_hook(drop).remove)
        live = stack.enter_context(LiveBytes([*model.parameters(), *model.buffers()]))
        if as_on_gpu:
            stack.enter_context(gpu_kernels())
        loss = loss_of_step()
        saved = live.now
        loss.backward()
        return StepMemory(saved, live.peak)


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Replaces what has other kernels on a GPU by stand-ins with their shapes (values are wrong).

    Fused attention keeps query, key, value, output and a float32 per query, and its backward pass
    adds up the query's gradient in float32 (FlashAttention-2, arXiv:2307.08691, as PyTorch has it).
    Dropout keeps a mask of one byte a value.
    """
    # Functions are replaced, because a TorchFunctionMode is not on while checkpointing runs blocks
    # again in the backward pass.
    with (
        patch.object(F, "scaled_dot_product_attention", _flash_attention),
        patch.object(F, "dropout", _dropout_with_mask),
    ):
        yield


def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
) -> torch.Tensor:
    return _FlashShapes.apply(query, key, value)


def _dropout_with_mask(
    values: torch.Tensor, p: float = 0.5, training: bool = True, *_: Any
) -> torch.Tensor:
    return _MaskedShapes.apply(values) if training and p > 0.0 else values


class _MaskedShapes(torch.autograd.Function):
    """Dropout's shapes."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty_like(values, dtype=torch.bool))
        return torch.empty_like(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (mask,) = ctx.saved_tensors
        return torch.empty_like(gradient[: mask.shape[0]])


class _FlashShapes(torch.autograd.Function):
    """Attention's shapes: (batch, heads, tokens, channels) each."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, _, sums = ctx.saved_tensors
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        # The workspace counts when it is made, beside what is given back.
        torch.empty_like(query, dtype=torch.float32), torch.empty_like(sums)
        return made
