"""What is said about the run while it trains: console line, metrics, status, broken images."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pretrain.quarantine import share_broken_images
from pretrain.state import Training
from tracking import metric_names as names
from tracking.system import system_metrics


def report(training: Training) -> None:
    """Log the interval that ends at `training.step`; a collective.

    Raises:
        RefusedInput: More training images are broken than `data.max_broken_fraction` tolerates.
    """
    plan, step = training.plan, training.step
    loss = torch.stack(training.losses).mean()
    dist.all_reduce(loss)
    training.losses.clear()
    share_broken_images(training)
    if not plan.ranks.is_main:
        training.meter.read_and_reset()
        return
    values = {
        names.TRAIN_LOSS: loss.item() / plan.ranks.world_size,
        names.TRAIN_LR: plan.learning_rate(step - 1),
        names.TRAIN_GRAD_NORM: float(training.gradient_norm),
        names.TRAIN_EPOCH: training.position / plan.train.num_images,
        names.TRAIN_IMAGES_SEEN: float(training.position),
        names.TRAIN_BROKEN_IMAGES: float(len(training.broken)),
        **{f"throughput/{name}": v for name, v in training.meter.read_and_reset().items()},
        **system_metrics(),
    }
    training.tracked.log_metrics(step, values)
    training.progress.log(step, values)
    training.write_status("running")
