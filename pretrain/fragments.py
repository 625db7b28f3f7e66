"""The part of the fp32 training state that this rank holds, parameter by parameter.

Each ZeRO stage cuts master weights and Adam's moments into flat tensors of its own. Here every
piece of them is named by the model parameter it belongs to and by where in that parameter it
starts, which no longer depends on stage or number of ranks.

What is read of DeepSpeed (0.19): `_hp_mapping` of stages 1 and 2 and of the bf16 optimizer,
`grad_position` of stage 3; the tests compare every stage with the model's own weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Fragment:
    """A run of elements of one parameter.

    Attributes:
        name: The parameter's, in the model.
        start: Of the first element, in the flattened parameter.
        numel: Elements.
        flat: The tensor that the optimizer updates, fp32; it may hold many fragments.
        offset: Of the first element in `flat`.
    """

    name: str
    start: int
    numel: int
    flat: torch.Tensor
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fragment's elements of a tensor with `flat`'s layout, as a view (numel,)."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def held_fragments(engine: Any) -> list[Fragment]:
    """What this rank holds, in model order: its part under ZeRO 1 to 3, everything under 0."""
    stage = engine.zero_optimization_stage()
    named = list(engine.module.named_parameters())
    if frozen := [name for name, parameter in named if not parameter.requires_grad]:
        raise NotImplementedError(f"parameters that are not trained have no state: {frozen}")
    if stage == 0:
        return [Fragment(name, 0, p.numel(), p, 0) for name, p in named]
    find = _of_stage_3 if stage == 3 else _of_stages_1_and_2
    return list(find(engine.optimizer, named))


def publish_master_weights(engine: Any) -> None:
    """Let the weights that the engine computes with follow the master weights; a collective."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if small := optimizer.persistent_parameters:  # kept whole on every rank
            small[0].all_gather(small)


def _of_stages_1_and_2(optimizer: Any, named: list[tuple[str, Any]]) -> Iterator[Fragment]:
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if flats is None:  # the bf16 optimizer, which serves stage 1
        flats = optimizer.fp32_groups_flat_partition
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is None:  # all of it is on other ranks
            continue
        place, flat_place = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = flats[mapping.param_group_index]
        yield Fragment(name, place.start, place.numel, flat, flat_place.start)


def _of_stage_3(optimizer: Any, named: list[tuple[str, Any]]) -> Iterator[Fragment]:
    rank = torch.distributed.get_rank()
    for name, parameter in named:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * size  # all ranks hold equally much; the last ones' ends are padding
        numel = min(size, parameter.ds_numel - start)
        if numel > 0:
            flat = optimizer.fp32_partitioned_groups_flat[group]
            yield Fragment(name, start, numel, flat, offset)
