"""Scoring the model on the validation images while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from data_pipeline.augment import EvalTransform, normalise
from data_pipeline.loader import EvalLoader
from data_pipeline.resizing import Resizing
from pretrain.state import Training
from tracking.metric_names import (
    VALIDATION_LOSS,
    VALIDATION_MEAN_AVERAGE_PRECISION,
    VALIDATION_MEAN_PER_CLASS,
    VALIDATION_TOP1,
    VALIDATION_TOP5,
)
from training.average_precision import evaluate_multi_label
from training.evaluate import evaluate
from training.processes import default_threads


def validate(training: Training) -> None:
    """Score every validation image once, over all ranks, and log the result; a collective."""
    if training.plan.validation is None:
        return
    engine = training.engine
    engine.eval()
    with training.meter.pause():
        is_multi_label = training.plan.validation.is_multi_label
        training.validation = (_multi_label_scores if is_multi_label else _scores)(training)
    engine.train()
    training.tracked.log_metrics(training.step, training.validation)
    training.progress.log(training.step, training.validation)


def _scores(training: Training) -> dict[str, float]:
    scores = evaluate(
        _forward(training),
        _batches(training),
        num_classes=training.plan.num_classes,
        device=training.device,
        distributed=training.plan.ranks.world_size > 1,
        loss_kind=training.plan.config.loss.kind,
    )
    return {
        VALIDATION_TOP1: scores.top1,
        VALIDATION_TOP5: scores.top5,
        VALIDATION_MEAN_PER_CLASS: scores.mean_per_class,
        VALIDATION_LOSS: scores.loss,
    }


def _multi_label_scores(training: Training) -> dict[str, float]:
    scores = evaluate_multi_label(
        _forward(training),
        _batches(training),
        num_classes=training.plan.num_classes,
        device=training.device,
        distributed=training.plan.ranks.world_size > 1,
    )
    return {
        VALIDATION_MEAN_AVERAGE_PRECISION: scores.mean_average_precision,
        VALIDATION_LOSS: scores.loss,
    }


def _forward(training: Training) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: training.engine(normalise(images, dtype=training.dtype))


def _batches(training: Training) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    plan, config = training.plan, training.plan.config
    assert plan.validation is not None
    loader = EvalLoader(
        plan.validation,
        transform=EvalTransform(
            training.architecture.image_px,
            config.data.eval_resize_px,
            resizing=Resizing.of(config.augment),
        ),
        batch_images=config.evaluation.batch_images,
        rank=plan.ranks.rank,
        world_size=plan.ranks.world_size,
        loader=config.loader,
        threads=config.loader.threads or default_threads(plan.ranks.local_world_size),
        max_broken_fraction=config.data.max_broken_fraction,
    )
    for batch in loader:
        yield batch.to(training.device)
