"""An exponential moving average of the fp32 master weights, divided over the ranks as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pretrain.fragments import Fragment, held_fragments, publish_master_weights


class WeightAverage:
    """Follows the master weights with the decay min(`decay`, (1 + t) / (10 + t)) after t updates.

    The lower decay at the start lets the average forget the random weights soon (as in TensorFlow's
    ExponentialMovingAverage). It costs 4 bytes a parameter, shared by the ranks under ZeRO.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        """Start at the present master weights of DeepSpeed's `engine`."""
        self._engine = engine
        self._decay = decay
        flats = {id(f.flat): f.flat for f in held_fragments(engine)}
        self._pairs = {key: (flat, flat.detach().clone()) for key, flat in flats.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move towards the master weights, which `updates` updates have been made of."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for weights, average in self._pairs.values():
            average.lerp_(weights.detach(), 1.0 - decay)

    def of(self, fragment: Fragment) -> torch.Tensor:
        """The average of a fragment's elements, as a view (numel,)."""
        return fragment.of(self._pairs[id(fragment.flat)][1])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the average while the block runs; a collective."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weights, average in self._pairs.values():
            kept = weights.detach().clone()
            weights.detach().copy_(average)
            average.copy_(kept)
        publish_master_weights(self._engine)
