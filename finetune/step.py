"""One optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from data_pipeline.augment import normalise
from finetune.state import TransferState
from training.losses import masked_sigmoid_cross_entropy, soft_targets, softmax_cross_entropy
from training.mixup import Mixup
from training.schedule import learning_rate


@dataclass(frozen=True)
class StepOutcome:
    """What one step did.

    Attributes:
        loss: Mean over this process's images, a scalar on the device.
        grad_norm: Global norm before clipping, the same on every process.
        learning_rate: Used for the update.
        has_diverged: The gradient was not finite; the weights were left as they were.
    """

    loss: torch.Tensor
    grad_norm: float
    learning_rate: float
    has_diverged: bool


def take_step(state: TransferState) -> StepOutcome:
    """Make one update from one global batch and count it."""
    rate = _set_learning_rate(state)
    state.model.train()
    losses = [_accumulate_micro_batch(state) for _ in range(state.accumulation_steps)]
    clip_norm = state.config.clip_norm or math.inf  # the norm is wanted in any case
    norm = state.accelerator.clip_grad_norm_(state.model.parameters(), clip_norm)
    # Waits for the device; gradients are summed over processes, so all come to the same answer.
    grad_norm = float(norm)
    has_diverged = not math.isfinite(grad_norm)
    if not has_diverged:
        state.optimizer.step()
    state.optimizer.zero_grad()
    state.progress.step += 1
    state.meter.step_done()
    return StepOutcome(torch.stack(losses).mean(), grad_norm, rate, has_diverged)


def _set_learning_rate(state: TransferState) -> float:
    rate = learning_rate(
        state.progress.step,
        kind="cosine",
        peak=state.progress.peak,
        total_steps=state.config.steps,
        warmup_steps=state.warmup_steps,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _accumulate_micro_batch(state: TransferState) -> torch.Tensor:
    """Add a micro batch's gradient; gives back its mean loss."""
    batch = next(state.loader)
    state.meter.record_wait(batch.wait_seconds)
    images, labels = batch.to(state.accelerator.device)
    images = state.augmentation.rand_augment(images, batch.positions)
    mixup = state.augmentation.mixup(state.progress.step)
    inputs = mixup(normalise(images, state.start.mean, state.start.std))
    # Processes exchange gradients at the last micro batch of a step only.
    with state.accelerator.accumulate(state.model):
        logits = state.model(inputs)
        loss = _loss(logits, labels, mixup)
        state.accelerator.backward(loss)
    return loss.detach()


def _loss(logits: torch.Tensor, labels: torch.Tensor, mixup: Mixup) -> torch.Tensor:
    """Mean loss of logits (batch, C): softmax for labels (batch,), sigmoid for sets (batch, C)."""
    if labels.ndim == 2:
        return mixup.loss(masked_sigmoid_cross_entropy, logits, labels)
    return softmax_cross_entropy(logits, mixup(soft_targets(labels, logits.shape[1])))
