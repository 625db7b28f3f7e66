"""One optimizer step: forward and backward over the micro batches, then the update."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.augment import normalise
from pretrain.state import Training
from training.losses import (
    masked_sigmoid_cross_entropy,
    sigmoid_cross_entropy,
    soft_targets,
    softmax_cross_entropy,
)
from training.phases import AUGMENTATION, BACKWARD, DATA, FORWARD, OPTIMIZER, OTHER

logger = logging.getLogger(__name__)

_LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def train_step(training: Training) -> None:
    """Make one update of the weights from the next global batch.

    A loss or gradient that is not finite leaves weights and optimizer as they are, on all ranks;
    the step counts, and `training.health` decides what it means.
    """
    plan, engine = training.plan, training.engine
    training.profile_if_due()
    _pass_over_trouble(training)
    for group in engine.optimizer.param_groups:
        group["lr"] = plan.learning_rate(training.step)
    losses = _accumulate(training)
    training.phases.begin(OPTIMIZER)
    with training.watching_norms():
        norm = _update(engine)
    first = training.position
    if norm is None:
        _update_was_left_out(training, losses)
    else:
        training.gradient_norm = norm
        training.losses.append(losses.mean())
        training.health.update_made(training.step, first)
        if training.average is not None:
            training.average.update(training.step)
    training.phases.begin(OTHER)
    training.step += 1
    training.position += plan.config.batch.global_images
    training.meter.step_done()
    training.beat()


def _accumulate(training: Training) -> torch.Tensor:
    """Add up the gradient of the micro batches; gives this rank's losses (accumulation steps,)."""
    plan, engine, phases = training.plan, training.engine, training.phases
    losses = []
    for micro_step in range(plan.accumulation_steps):
        phases.begin(DATA)
        batch = next(training.loader)
        training.meter.record_wait(batch.wait_seconds)
        images, labels = batch.to(training.device)
        phases.begin(AUGMENTATION)
        images = training.augmentation.rand_augment(images, batch.positions)
        phases.begin(FORWARD)
        loss = _loss(training, images, labels)
        phases.begin(BACKWARD)
        engine.backward(_poisoned(loss))
        losses.append(loss.detach())
        # While the device computes; and before the update, which makes the host wait for it.
        training.loader.copy_ahead(training.device)
        if micro_step + 1 < plan.accumulation_steps:
            engine.step()  # only counts the micro batch
    return torch.stack(losses)


def _pass_over_trouble(training: Training) -> None:
    """Move on to the next position that no earlier trouble was at."""
    position = training.health.passing_over(training.position)
    if position != training.position:
        logger.warning("passing over positions %d to %d", training.position, position - 1)
        training.position = position
        training.loader.skip_to(position)


def _loss(training: Training, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of a micro batch: images uint8 (batch, 3, H, W), labels as a `Batch` has them."""
    config = training.plan.config.loss
    mixup = training.augmentation.mixup(training.step)
    logits = training.engine(mixup(normalise(images)).to(training.dtype))
    if training.plan.train.is_multi_label:
        return mixup.loss(masked_sigmoid_cross_entropy, logits, labels)
    targets = soft_targets(labels, training.plan.num_classes, config.label_smoothing)
    return _LOSSES[config.kind](logits, mixup(targets))


def _poisoned(loss: torch.Tensor) -> torch.Tensor:
    """The loss times 1, or times NaN if it is not finite.

    So a bad loss on one rank makes the summed gradient NaN on all of them, and the one check of the
    gradient's norm, which comes before the update, catches both without a collective of its own.
    """
    return loss * (1.0 + 0.0 * loss.detach())


def _update(engine: Any) -> torch.Tensor | float | None:
    """Change the weights by the accumulated gradient.

    Returns:
        The gradient's norm before clipping, over all ranks; None if it was not finite, and then
        the weights and the optimizer's state are as before.

    Here alone a step makes the host wait for the device: whether the update is made depends on a
    number that is there only when the backward pass has ended.
    """
    if engine.zero_optimization_stage() == 0:
        # Here DeepSpeed hands the gradient to plain AdamW unseen: look at it first.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            engine.zero_grad()
            engine.micro_steps += 1  # as its own step would: the next batch starts a sum of its own
            return None
        engine.step()
        return norm
    engine.step()
    return engine.get_global_grad_norm() if engine.was_step_applied() else None


def _update_was_left_out(training: Training, losses: torch.Tensor) -> None:
    """Tell the run's health why: losses (accumulation steps,) of this rank; a collective."""
    by_rank = [torch.empty_like(losses) for _ in range(training.plan.ranks.world_size)]
    dist.all_gather(by_rank, losses)
    scale = training.loss_scale
    if scale.explains_overflow and all(torch.isfinite(rank).all() for rank in by_rank):
        assert scale.value is not None, "only fp16 overflows"
        training.health.gradient_overflowed(training.step, scale.value)
        return
    first = training.position
    positions = (first, first + training.plan.config.batch.global_images)
    reason = _what_is_not_finite(training, by_rank)
    training.health.update_skipped(training.step, positions, reason)


def _what_is_not_finite(training: Training, by_rank: list[torch.Tensor]) -> str:
    """Say where it happened, from the losses (accumulation steps,) of each rank."""
    plan, first = training.plan, training.position
    size = plan.config.batch.global_images
    bad = [
        f"rank {rank}, positions {first + micro_step * size // plan.accumulation_steps + rank} "
        f"and every {plan.ranks.world_size}th of the next {plan.micro_images}"
        for rank, values in enumerate(by_rank)
        for micro_step in torch.nonzero(~torch.isfinite(values)).flatten().tolist()
    ]
    cause = (
        f"the loss is not finite on {'; on '.join(bad)}"
        if bad
        else ("the gradient's norm is not finite, though the loss is")
    )
    return (
        f"step {training.step} (positions {first} to {first + size - 1}): {cause}. To see them: "
        f"python -m data_pipeline.show {plan.train.place} --seed {plan.config.seed} "
        f"--streams {plan.config.data.streams} --positions {first}:{first + size} "
        "--contact-sheet batch.png."
    )
