"""What is said about the run while it trains: console line, metrics, status, broken images."""

from __future__ import annotations

import torch
import torch.distributed as dist

from data_pipeline.broken import BrokenRecord, append_quarantine, check_broken_budget
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


def share_broken_images(training: Training) -> None:
    """Tell every rank which broken images the others have met; a collective.

    Raises:
        RefusedInput: There are too many; on all ranks.
    """
    new = training.loader.take_new_broken()
    found: list[list[BrokenRecord]] = [[]] * training.plan.ranks.world_size
    dist.all_gather_object(found, new)
    first_met = {
        record.row: record
        for records in found
        for record in records
        if record.row not in training.broken
    }
    if not first_met:
        return
    training.broken |= first_met
    if training.plan.ranks.is_main:
        append_quarantine(training.folder.path / "quarantine.jsonl", first_met.values())
    check_broken_budget(
        len(training.broken),
        training.plan.train.num_images,
        training.plan.config.data.max_broken_fraction,
    )
