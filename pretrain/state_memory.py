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

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
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
        optimizer: Master weights and Adam's moments, if they are not in host memory.
        average: The moving average of the weights, if it is not in host memory.
        backward_buffers: Buckets, and weights gathered from the other ranks (ZeRO 3).
        update_buffers: The same while gradients are summed over the ranks and weights updated.
        host: What is in host memory instead, and its gradients there.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    backward_buffers: int
    update_buffers: int
    host: int = 0

    @property
    def in_backward(self) -> int:
        """All of it on the device during the passes."""
        return self._kept + self.backward_buffers

    @property
    def in_update(self) -> int:
        """All of it on the device during the update."""
        return self._kept + self.update_buffers

    @property
    def _kept(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average


@dataclass(frozen=True)
class _Part:
    """What the stages have in common: sizes in values, widths in bytes.

    Attributes:
        sizes: Of each parameter of the model.
        total: Of all.
        own: This rank's part.
        width: Of a weight in the passes.
        sum_width: Of a gradient while it is summed over the ranks.
        average: Bytes of the moving average.
        zero: DeepSpeed's `zero_optimization` block with its defaults.
    """

    sizes: Sequence[int]
    total: int
    own: int
    width: int
    sum_width: int
    average: int
    zero: Mapping[str, Any]

    @property
    def offloads(self) -> bool:
        return self.zero.get("offload_optimizer", {}).get("device", "none") == "cpu"

    @property
    def bucket(self) -> int:
        """Values that are summed over the ranks together."""
        return int(self.zero["reduce_bucket_size"])

    @property
    def summed(self) -> int:
        """Bytes of a bucket's gradients in the type they are summed in, if it is another one."""
        filled = min(self.total, self.bucket)
        return filled * self.sum_width if self.sum_width != self.width else 0


def state_memory(
    parameter_sizes: Sequence[int],
    *,
    stage: int,
    world_size: int,
    deepspeed: Mapping[str, Any],
    average: bool = False,
) -> StateMemory:
    """Memory of one rank.

    Args:
        parameter_sizes: Number of values of each parameter of the model.
        stage: Of ZeRO.
        world_size: Number of ranks.
        deepspeed: DeepSpeed's options, of which the stage is not read.
        average: Whether a moving average of the weights is kept.
    """
    total = sum(parameter_sizes)
    own = math.ceil(total / world_size) if stage else total
    is_bf16 = deepspeed["bf16"]["enabled"]
    part = _Part(
        sizes=parameter_sizes,
        total=total,
        own=own,
        width=2 if is_bf16 or deepspeed["fp16"]["enabled"] else _FP32,
        sum_width=BYTES[deepspeed["communication_data_type"]],
        average=own * _FP32 if average else 0,
        zero={**_DEFAULTS, **deepspeed["zero_optimization"]},
    )
    if stage == 0:
        # Gradients are copied together to be summed over the ranks.
        flat = min(total, part.bucket) * _FP32 if world_size > 1 else 0
        return StateMemory(
            total * part.width, total * _FP32, total * _MOMENTS, part.average, 0, flat
        )
    if stage == 3:
        return _stage_3(part, world_size)
    if stage == 1 and is_bf16 and not part.offloads:
        return _bf16_stage_1(part, world_size)
    return _stages_1_and_2(part, stage)


def _bf16_stage_1(part: _Part, world_size: int) -> StateMemory:
    """DeepSpeed's own optimizer class for it: gradients in bf16 as they come, and an fp32 sum.

    The sum is of all gradients, copied once in fp32 to be summed over the ranks, and once more if
    that is done in bf16.
    """
    copies = _FP32 + (part.sum_width if part.sum_width != _FP32 else 0)
    return StateMemory(
        weights=part.total * part.width,
        gradients=part.total * (part.width + _FP32),
        optimizer=part.own * (_MASTER + _MOMENTS),
        average=part.average,
        backward_buffers=0,
        update_buffers=part.total * copies if world_size > 1 else 0,
    )


def _stages_1_and_2(part: _Part, stage: int) -> StateMemory:
    # The bucket is taken whole, however small the model, for each backward pass. A model that does
    # not fill it has its gradients summed at the end of the pass, when activations are gone.
    copies = 2 if part.zero.get("overlap_comm") else 1
    bucket = copies * part.bucket * part.width
    overfull = part.summed if part.total > part.bucket else 0
    is_fp32 = part.width == _FP32
    # Under fp32 the partition's gradients are copied together for the update.
    update = max(bucket + part.summed, part.own * _FP32 if is_fp32 else 0)
    if not part.offloads:
        return StateMemory(
            weights=part.total * part.width,
            gradients=part.own * _FP32,
            optimizer=part.own * (_MASTER + _MOMENTS),
            average=part.average,
            backward_buffers=bucket + overfull,
            update_buffers=update,
        )
    # Gradients accumulate in fp32 on the device where the passes' are not fp32 themselves, else (at
    # stage 2) on the host; they are updated with on the host, and weights go back through a copy.
    largest = max(part.sizes) * part.width
    accumulated = _FP32 if is_fp32 and stage == 2 else 0
    on_host = _MASTER + _MOMENTS + _FP32 + accumulated + part.width
    return StateMemory(
        weights=part.total * part.width,
        gradients=0 if is_fp32 else part.own * _FP32,
        optimizer=0,
        average=0,
        backward_buffers=bucket + overfull + largest,
        update_buffers=bucket + part.summed + largest,
        host=part.own * on_host + largest + part.average,
    )


def _stage_3(part: _Part, world_size: int) -> StateMemory:
    # With one rank the whole weights are its part.
    persistent, gathered = _kept_by_stage_3(part) if world_size > 1 else (0, 0)
    weights = (part.own + persistent) * part.width
    overfull = part.summed if part.total > part.bucket else 0
    backward = (part.bucket + gathered) * part.width + overfull
    # The bucket stays for good; the update copies the partition's gradients together.
    bucket = part.bucket * part.width
    if part.offloads:
        host = part.own * (_MASTER + _MOMENTS + 2 * _FP32) + part.average
        return StateMemory(weights, 0, 0, 0, backward, bucket + part.summed, host)
    return StateMemory(
        weights=weights,
        gradients=part.own * _FP32,
        optimizer=part.own * (_MASTER + _MOMENTS),
        average=part.average,
        backward_buffers=backward,
        update_buffers=bucket + max(part.summed, part.own * _FP32),
    )


def _kept_by_stage_3(part: _Part) -> tuple[int, int]:
    """Parameters that ZeRO 3 holds whole: always, and at most while it computes.

    Weights stay gathered if they are used again within so many parameters, counted along forward
    and backward pass: the last half of that distance before the loss, which is everything in most
    models. Those to come are gathered ahead.
    """
    threshold = part.zero["stage3_param_persistence_threshold"]
    persistent = sum(size for size in part.sizes if size < threshold)
    window = int(part.zero["stage3_max_reuse_distance"]) // 2 + int(
        part.zero["stage3_prefetch_bucket_size"]
    )
    return persistent, min(part.total - persistent, window)


def checkpoint_bytes(num_parameters: int, average: bool = False) -> int:
    """Bytes of a checkpoint, over the files of all ranks: master weights, Adam's moments, average.

    The same at every stage and precision; each rank copies its share to host memory to write it
    (`pretrain.saver`).
    """
    return num_parameters * (_MASTER + _MOMENTS + _FP32 * average)
