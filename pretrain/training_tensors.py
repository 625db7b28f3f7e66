"""The tensors that make up the training state, by kind and fragment: weights, moments, average."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.fragments import Fragment, held_fragments, publish_master_weights
from pretrain.state_files import AVERAGE, MASTER, SavedState
from pretrain.weight_average import WeightAverage

_MOMENTS = ("exp_avg", "exp_avg_sq")  # torch AdamW's names


class TrainingTensors:
    """This rank's part of the fp32 state of an engine.

    Args:
        engine: DeepSpeed's.
        average: Of its weights; None where none is kept.
    """

    def __init__(self, engine: Any, average: WeightAverage | None) -> None:
        """See the class."""
        self._engine = engine
        self._average = average

    def own_fragments(self, rank: int, world_size: int) -> list[Fragment]:
        """What this rank saves: over all ranks, every element once."""
        held = held_fragments(self._engine)
        is_divided = self._engine.zero_optimization_stage() > 0
        return held if is_divided else held[rank::world_size]

    def tensors_of(self, fragment: Fragment) -> dict[str, torch.Tensor]:
        """The fragment's elements of every kind, as views; no moments before the first update."""
        state = self._engine.basic_optimizer.state.get(fragment.flat, {})
        tensors = {MASTER: fragment.of(fragment.flat)}
        tensors |= {key: fragment.of(state[key]) for key in _MOMENTS if key in state}
        if self._average is not None:
            tensors[AVERAGE] = self._average.of(fragment)
        return tensors

    def updates_made(self) -> int:
        """Adam's step count, which every tensor's state repeats; 0 before the first update."""
        counts = {int(state["step"]) for state in self._engine.basic_optimizer.state.values()}
        if len(counts) > 1:
            raise RuntimeError(f"Adam's step counts differ between tensors: {sorted(counts)}")
        return counts.pop() if counts else 0

    def read_own_part(self, saved: SavedState, updates: int) -> None:
        """Fill all tensors from the files of a checkpoint, saved after so many updates.

        Raises:
            RuntimeError: The files do not hold them all.
        """
        fragments = held_fragments(self._engine)
        self._make_moments(fragments, updates)
        for fragment in fragments:
            for kind, tensor in self.tensors_of(fragment).items():
                if kind in _MOMENTS and updates == 0:
                    tensor.zero_()  # the optimizer had none yet: nothing was updated, or overflowed
                    continue
                name = f"{kind}/{fragment.name}"
                tensor.copy_(saved.read(name, fragment.start, fragment.numel))

    def publish(self) -> None:
        """Let the weights that are computed with follow the master weights; a collective."""
        publish_master_weights(self._engine)

    def _make_moments(self, fragments: list[Fragment], updates: int) -> None:
        for flat in {id(f.flat): f.flat for f in fragments}.values():
            state = self._engine.basic_optimizer.state[flat]
            # A tensor of its own each: a shared one would be counted up once per tensor.
            state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=flat.device)
            for key in _MOMENTS:
                if key not in state:
                    state[key] = torch.zeros_like(flat, requires_grad=False)
