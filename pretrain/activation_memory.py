"""Activation memory of the training step, read from the model on torch's meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from configs.schema import PretrainConfig
from data_pipeline.augment import normalise
from models.step_memory import StepMemory, measure_step
from models.vit import checkpoint_blocks
from models.zoo import Architecture, build_model, fuse_attention
from training.losses import sigmoid_cross_entropy, soft_targets, softmax_cross_entropy
from training.precision import Precision

_LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Micro batches at which the step is run on the meta device; memory is linear in between and beyond.
_PROBES = (16, 32)


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of forward and backward pass as a function of the micro batch.

    Attributes:
        saved_per_image: Kept from the forward for the backward pass.
        peak_per_image: At the fullest moment of either.
        constant: Of that moment, what does not depend on the micro batch.
    """

    saved_per_image: float
    peak_per_image: float
    constant: float

    def peak(self, micro_images: int) -> float:
        """Bytes at the fullest moment of a step with this micro batch."""
        return self.constant + self.peak_per_image * micro_images


@dataclass(frozen=True)
class Passes:
    """A forward and a backward pass to look at.

    Attributes:
        config: The run's options; loss, dropout and stochastic depth matter.
        architecture: Of the model.
        precision: Of both passes.
        checkpoint_blocks: Every so many-th block keeps its input only and is run again in the
            backward pass; 0 for none.
    """

    config: PretrainConfig
    architecture: Architecture
    precision: Precision
    checkpoint_blocks: int


def activation_memory(passes: Passes) -> ActivationMemory:
    """Activations on a GPU, without one."""
    small, large = (
        probe_step(passes, micro_images=images, device="meta", as_on_gpu=True) for images in _PROBES
    )
    between = _PROBES[1] - _PROBES[0]
    slope = (large.peak - small.peak) / between
    return ActivationMemory(
        saved_per_image=(large.saved - small.saved) / between,
        peak_per_image=slope,
        constant=large.peak - slope * _PROBES[1],
    )


def probe_step(
    passes: Passes, *, micro_images: int, device: torch.device | str, as_on_gpu: bool = False
) -> StepMemory:
    """Count the activations of one micro batch on `device`; any but "meta" computes, too.

    `as_on_gpu` counts what CUDA's fused attention and dropout keep, instead of timm's unfused
    attention, which is what training on a CPU takes (`models.zoo.choose_attention`).
    """
    config, architecture = passes.config, passes.architecture
    dtype = _DTYPES[passes.precision]
    model = build_model(
        architecture,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        device=device,
    ).to(dtype)
    checkpoint_blocks(model, passes.checkpoint_blocks)
    fuse_attention(model, as_on_gpu)
    shape = (micro_images, 3, *architecture.image_px)

    def loss() -> torch.Tensor:
        images = torch.zeros(shape, dtype=torch.uint8, device=device)
        labels = torch.zeros(micro_images, dtype=torch.int64, device=device)
        targets = soft_targets(labels, architecture.num_classes, config.loss.label_smoothing)
        return _LOSSES[config.loss.kind](model(normalise(images, dtype=dtype)), targets)

    return measure_step(model, loss, as_on_gpu=as_on_gpu)
