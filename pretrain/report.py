"""What is said about the run while it trains: console line, metrics, status, broken images."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from pretrain.quarantine import share_broken_images
from pretrain.remote_report import remote_metrics
from pretrain.state import Training
from tracking import metric_names as names
from tracking.system import system_metrics
from training.phases import DATA, LOGGING


def report(training: Training) -> None:
    """Log the interval that ends at `training.step`; a collective.

    Raises:
        RefusedInput: More training images are broken than `data.max_broken_fraction` tolerates.
    """
    with training.phases.within(LOGGING):
        _report(training)


def _report(training: Training) -> None:
    plan, step = training.plan, training.step
    loss = mean_loss(training)
    if not math.isnan(loss):
        training.health.loss_logged(loss, training.position)
    share_broken_images(training)
    looked_at = {
        **time_metrics(training),
        **_norms(training),
        **remote_metrics(training),
    }
    scale = training.loss_scale.value
    if not plan.ranks.is_main:
        training.meter.read_and_reset()
        return
    values = {
        **({} if math.isnan(loss) else {names.TRAIN_LOSS: loss}),
        names.TRAIN_LR: plan.learning_rate(step - 1),
        names.TRAIN_GRAD_NORM: float(training.gradient_norm),
        **({} if scale is None else {names.TRAIN_LOSS_SCALE: scale}),
        names.TRAIN_EPOCH: training.position / plan.train.num_images,
        names.TRAIN_IMAGES_SEEN: float(training.position),
        names.TRAIN_BROKEN_IMAGES: float(len(training.broken)),
        names.TRAIN_SKIPPED_UPDATES: float(training.health.skipped),
        names.TRAIN_REWINDS: float(len(training.health.rewinds)),
        **{f"throughput/{name}": v for name, v in training.meter.read_and_reset().items()},
        **looked_at,
        **system_metrics(),
    }
    training.tracked.log_metrics(step, values)
    training.progress.log(step, values)
    training.write_status("running")


def time_metrics(training: Training) -> dict[str, float]:
    """Rank 0's shares of each phase, and the longest that a rank waited for data; a collective."""
    shares = training.phases.read_and_reset()
    metrics = {names.time_share(phase): share for phase, share in sorted(shares.items())}
    if training.plan.ranks.world_size > 1:
        share = shares.get(DATA, 0.0)
        waited = torch.tensor(share, dtype=torch.float64, device=training.device)
        dist.all_reduce(waited, op=dist.ReduceOp.MAX)
        metrics[names.worst_rank(names.time_share(DATA))] = waited.item()
    return metrics


def _norms(training: Training) -> dict[str, float]:
    return training.norms.read(float(training.gradient_norm)) if training.norms else {}


def mean_loss(training: Training) -> float:
    """Of the updates since the last call, over all ranks; a collective. NaN if none was made."""
    losses, training.losses = training.losses, []
    if not losses:  # on all ranks alike: updates are left out together
        return math.nan
    loss = torch.stack(losses).mean()
    dist.all_reduce(loss)
    return loss.item() / training.plan.ranks.world_size
