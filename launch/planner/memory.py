"""Memory of each ZeRO stage, with and without activation checkpointing, and what fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import RefusedInput
from pretrain.activation_memory import ActivationMemory
from pretrain.state_memory import StateMemory, state_memory

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Setting:
    """One way to run, and what it takes on each GPU.

    Attributes:
        stage: Of ZeRO.
        checkpoint_blocks: Every so many-th block runs again in the backward pass; 0 for none.
        state: Weights, gradients, optimizer and buffers.
        activations: Of forward and backward pass.
        usable_bytes: Of the GPU's memory.
        largest_micro_images: The most images of one forward pass that fit; 0 if none does.
        best_micro_images: The most that also divide a GPU's share of the global batch.
    """

    stage: int
    checkpoint_blocks: int
    state: StateMemory
    activations: ActivationMemory
    usable_bytes: float
    largest_micro_images: int
    best_micro_images: int

    def total(self, micro_images: int) -> float:
        """Bytes at the fullest moment of a step: in the backward pass or in the update."""
        backward = self.state.in_backward + self.activations.peak(micro_images)
        return max(backward, float(self.state.in_update))

    def fits(self, micro_images: int) -> bool:
        """Whether a micro batch of this size runs."""
        return self.total(micro_images) <= self.usable_bytes

    def as_json(self) -> dict[str, Any]:
        """Everything in bytes."""
        return {
            "zero_stage": self.stage,
            "activation_checkpointing": self.checkpoint_blocks > 0,
            "checkpoint_blocks": self.checkpoint_blocks,
            "weights_bytes": self.state.weights,
            "gradients_bytes": self.state.gradients,
            "optimizer_bytes": self.state.optimizer,
            "average_bytes": self.state.average,
            "host_bytes": self.state.host,
            "buffers_bytes": self.state.backward_buffers,
            "update_buffers_bytes": self.state.update_buffers,
            "activation_bytes_per_image": round(self.activations.peak_per_image),
            "saved_activation_bytes_per_image": round(self.activations.saved_per_image),
            "largest_micro_images": self.largest_micro_images,
            "best_micro_images": self.best_micro_images,
        }


@dataclass(frozen=True)
class Ground:
    """What all settings have in common.

    Attributes:
        parameter_sizes: Number of values of each parameter.
        activations: By what `model.checkpoint_blocks` may be.
        deepspeed: DeepSpeed's options.
        average: Whether a moving average of the weights is kept.
        num_gpus: Ranks.
        rank_images: Images of one step of one rank.
        usable_bytes: Of a GPU's memory.
    """

    parameter_sizes: tuple[int, ...]
    activations: Mapping[int, ActivationMemory]
    deepspeed: Mapping[str, Any]
    average: bool
    num_gpus: int
    rank_images: int
    usable_bytes: float

    def setting(self, stage: int, checkpoint_blocks: int) -> Setting:
        """Work one setting out."""
        state = state_memory(
            self.parameter_sizes,
            stage=stage,
            world_size=self.num_gpus,
            deepspeed=self.deepspeed,
            average=self.average,
        )
        activations = self.activations[checkpoint_blocks]
        room = self.usable_bytes - state.in_backward - activations.constant
        largest = max(0, int(room // activations.peak_per_image))
        if state.in_update > self.usable_bytes:
            largest = 0
        divisors = [d for d in range(1, self.rank_images + 1) if self.rank_images % d == 0]
        best = max((d for d in divisors if d <= largest), default=0)
        return Setting(
            stage, checkpoint_blocks, state, activations, self.usable_bytes, largest, best
        )

    def settings(self) -> list[Setting]:
        """All that can run: stage 0 would sum 16-bit gradients in their own precision."""
        offloads = "offload_optimizer" in self.deepspeed["zero_optimization"]
        is_fp32 = not (self.deepspeed["bf16"]["enabled"] or self.deepspeed["fp16"]["enabled"])
        stages = STAGES if is_fp32 and not offloads else STAGES[1:]
        return [self.setting(stage, every) for stage in stages for every in self.activations]


def recommend(settings: list[Setting], good_micro_images: float) -> Setting | None:
    """The fastest that fits: blocks run again only if nothing fits otherwise, the lowest stage.

    A stage is passed over if its micro batch is below `good_micro_images` and a later one's is
    larger. None if nothing fits.
    """
    able = [setting for setting in settings if setting.best_micro_images]

    def rank(setting: Setting) -> tuple[bool, float, int, int]:
        filled = min(1.0, setting.best_micro_images / good_micro_images)
        return (setting.checkpoint_blocks > 0, -filled, -setting.checkpoint_blocks, setting.stage)

    return min(able, key=rank, default=None)


def check_offload(deepspeed: Mapping[str, Any]) -> None:
    """Refuse to plan what is not known.

    Raises:
        RefusedInput: Weights are offloaded, or anything to a disk.
    """
    options = deepspeed["zero_optimization"]
    for name, known in (("offload_optimizer", ("none", "cpu")), ("offload_param", ("none",))):
        if options.get(name, {}).get("device", "none") not in known:
            raise RefusedInput(
                f"deepspeed.zero_optimization.{name}: the planner does not know what stays on the "
                "GPU then; leave it out to plan without it"
            )
