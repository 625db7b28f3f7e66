"""Norms of gradients, weights and updates by groups of layers, exact at every ZeRO stage.

Whatever the stage, torch's optimizer is handed the fp32 weights that this rank updates, with their
gradients, already summed over the ranks. Around that one call the norms of this rank's part are
taken, on the device; at a log line their squares are summed over the ranks and read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from models.layer_groups import layer_groups
from pretrain.fragments import Fragment, held_fragments
from tracking import metric_names as names

_GRADIENT, _WEIGHT, _UPDATE = range(3)


class GroupNorms:
    """Looks at an update when asked to; costs nothing at all others.

    While the optimizer works, a copy of the weights that it updates is held: 4 bytes a parameter,
    divided by the number of ranks under ZeRO. The activations are gone by then.
    """

    def __init__(self, engine: Any, device: torch.device) -> None:
        """Of DeepSpeed's `engine`; sums over ranks are made on `device`."""
        self._optimizer = engine.basic_optimizer
        self._is_divided = engine.zero_optimization_stage() > 0
        self._device = device
        held = held_fragments(engine)
        group_of = layer_groups(name for name, _ in engine.module.named_parameters())
        self._groups = tuple(dict.fromkeys(group_of.values()))
        self._parts: dict[int, dict[int, list[Fragment]]] = {}
        for fragment in held:
            group = self._groups.index(group_of[fragment.name])
            self._parts.setdefault(id(fragment.flat), {}).setdefault(group, []).append(fragment)
        self._squares: torch.Tensor | None = None
        self._seen: set[int] = set()

    @contextmanager
    def watching(self, is_due: bool) -> Iterator[None]:
        """Take the norms of the update that the block makes, if they are due."""
        if not is_due:
            yield
            return
        self._squares, self._seen = None, set()
        before: dict[int, torch.Tensor] = {}

        def look_before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for flat in self._updated(optimizer):
                assert flat.grad is not None, "the optimizer passes over what has no gradient"
                before[id(flat)] = flat.detach().clone()
                self._add(_GRADIENT, flat, flat.grad)

        def look_after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for flat in self._updated(optimizer):
                self._add(_WEIGHT, flat, flat.detach())
                self._add(_UPDATE, flat, before.pop(id(flat)).sub_(flat.detach()))
                self._seen.add(id(flat))

        with ExitStack() as stack:
            stack.callback(self._optimizer.register_step_pre_hook(look_before).remove)
            stack.callback(self._optimizer.register_step_post_hook(look_after).remove)
            yield

    def read(self, gradient_norm: float) -> dict[str, float]:
        """Metrics of the update that was watched last; a collective.

        Empty if that update was left out, or if not all of it went through torch's optimizer.

        Args:
            gradient_norm: Of the whole gradient before clipping. The optimizer saw the clipped one,
                all groups scaled alike, so this puts the scale back.
        """
        squares, self._squares = self._squares, None
        shape = (3, len(self._groups))
        missing = torch.tensor([len(self._parts.keys() - self._seen)], device=self._device)
        told = torch.zeros(shape, dtype=torch.float64, device=self._device)
        if squares is not None:
            told.copy_(squares)
        told = torch.cat([told.flatten(), missing])
        if self._is_divided:
            dist.all_reduce(told)
        if told[-1] > 0:
            return {}
        groups = (*self._groups, names.ALL_GROUPS)
        gradient, weight, update = ([*row, sum(row)] for row in told[:-1].view(shape).tolist())
        scale = gradient_norm / max(math.sqrt(gradient[-1]), 1e-30)
        metrics = {}
        for number, group in enumerate(groups):
            if group != names.ALL_GROUPS:  # that one is train/grad_norm
                metrics[names.grad_norm(group)] = scale * math.sqrt(gradient[number])
            metrics[names.weight_norm(group)] = math.sqrt(weight[number])
            if weight[number] > 0.0:
                metrics[names.relative_update(group)] = math.sqrt(update[number] / weight[number])
        return metrics

    def _updated(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """What this call of the optimizer changes: ZeRO calls it once for each of its groups."""
        listed = [flat for group in optimizer.param_groups for flat in group["params"]]
        return [flat for flat in listed if flat.grad is not None and id(flat) in self._parts]

    @torch.no_grad()
    def _add(self, kind: int, flat: torch.Tensor, values: torch.Tensor) -> None:
        """Add this rank's part of each group's squared norm; `values` is laid out as `flat`."""
        if self._squares is None:
            shape = (3, len(self._groups))
            self._squares = torch.zeros(shape, dtype=torch.float64, device=flat.device)
        for group, fragments in self._parts[id(flat)].items():
            # A whole parameter needs no flat view, which a gradient in another memory format lacks.
            parts = [
                values if part.numel == values.numel() else part.of(values) for part in fragments
            ]
            self._squares[kind, group] += torch.nn.utils.get_total_norm(parts).double() ** 2
