"""Memory that DeepSpeed takes for weights, gradients and optimizer state, by ZeRO stage.

Arithmetic about the version that is pinned (0.19.8), with the options that
`configs.deepspeed_options` gives it; DeepSpeed itself is not imported. A test with real processes
counts the tensors (tests/integration/test_state_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.precision import Precision

BYTES = {"fp32": 4, "bf16": 2}
_FP32 = 4
# Adam's two moments and, where the weights are another copy, the fp32 master weights.
_MOMENTS = 8
_MASTER = 4

# DeepSpeed's defaults, in parameters.
_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}


@dataclass(frozen=True)
class StateMemory:
    """Bytes of one rank, activations left out.

    The backward pass has its gathered weights and buckets beside the activations; the update comes
    when the activations are gone and has buffers of its own.

    Attributes:
        weights: What forward and backward passes compute with, as it is kept between steps.
        gradients: Once all are there, before the update.
        optimizer: Master weights and Adam's moments.
        backward_buffers: Buckets, and weights gathered from the other ranks (ZeRO 3).
        update_buffers: The same while gradients are summed over the ranks and weights updated.
    """

    weights: int
    gradients: int
    optimizer: int
    backward_buffers: int
    update_buffers: int

    @property
    def in_backward(self) -> int:
        """All of it during the passes."""
        return self.weights + self.gradients + self.optimizer + self.backward_buffers

    @property
    def in_update(self) -> int:
        """All of it during the update."""
        return self.weights + self.gradients + self.optimizer + self.update_buffers


def state_memory(
    parameter_sizes: Sequence[int],
    *,
    stage: int,
    world_size: int,
    precision: Precision,
    zero_options: Mapping[str, Any],
) -> StateMemory:
    """Memory of one rank.

    Args:
        parameter_sizes: Number of values of each parameter of the model.
        stage: Of ZeRO.
        world_size: Number of ranks.
        precision: Of forward and backward passes.
        zero_options: DeepSpeed's `zero_optimization` block; missing keys have its defaults.
    """
    total = sum(parameter_sizes)
    part = math.ceil(total / world_size)
    width = BYTES[precision]
    options = {**_DEFAULTS, **zero_options}
    bucket = int(options["reduce_bucket_size"])
    if stage == 0:
        # Gradients are copied together to be summed over the ranks.
        flat = min(total, bucket) * _FP32 if world_size > 1 else 0
        return StateMemory(total * width, total * _FP32, total * _MOMENTS, 0, flat)
    optimizer = part * (_MASTER + _MOMENTS)
    if stage == 1 and precision == "bf16":
        # Its own optimizer class: gradients in bf16 as they come, and an fp32 sum of all of them,
        # which is copied once in fp32 and once in bf16 when it is summed over the ranks.
        flat = total * (_FP32 + width) if world_size > 1 else 0
        return StateMemory(total * width, total * (width + _FP32), optimizer, 0, flat)
    if stage < 3:
        # The bucket is taken whole, however small the model, for each backward pass. Under fp32
        # the partition's gradients are copied together for the update.
        copied = part * _FP32 if precision == "fp32" else 0
        copies = 2 if options.get("overlap_comm") else 1
        return StateMemory(total * width, part * _FP32, optimizer, copies * bucket * width, copied)
    # With one rank the whole weights are its part.
    persistent, gathered = _kept_by_stage3(parameter_sizes, options) if world_size > 1 else (0, 0)
    # The bucket stays for good; the update copies the partition's gradients together.
    return StateMemory(
        weights=(part + persistent) * width,
        gradients=part * _FP32,
        optimizer=optimizer,
        backward_buffers=(bucket + gathered) * width,
        update_buffers=bucket * width + part * _FP32,
    )


def _kept_by_stage3(parameter_sizes: Sequence[int], options: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters that ZeRO 3 holds whole: always, and at most while it computes.

    Weights stay gathered if they are used again within so many parameters, counted along forward
    and backward pass: the last half of that distance before the loss, which is everything in most
    models. Those to come are gathered ahead.
    """
    threshold = options["stage3_param_persistence_threshold"]
    persistent = sum(size for size in parameter_sizes if size < threshold)
    window = int(options["stage3_max_reuse_distance"]) // 2 + int(
        options["stage3_prefetch_bucket_size"]
    )
    return persistent, min(sum(parameter_sizes) - persistent, window)


def checkpoint_bytes(num_parameters: int) -> int:
    """Bytes of a checkpoint, over the files of all ranks: master weights and Adam's moments.

    The same at every stage and precision; each rank copies its share to host memory to write it
    (`pretrain.saver`).
    """
    return num_parameters * (_MASTER + _MOMENTS)
