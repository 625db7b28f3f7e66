"""Scoring the model on the validation images while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from data_pipeline.augment import EvalTransform, normalise
from data_pipeline.index import ShardedDataset
from data_pipeline.loader import EvalLoader
from data_pipeline.real_labels import batches_with_real_labels
from data_pipeline.resizing import Resizing
from pretrain.quarantine import settle_evaluation
from pretrain.state import Training
from tracking.metric_names import (
    VALIDATION_BROKEN_IMAGES,
    VALIDATION_LOSS,
    VALIDATION_MEAN_AVERAGE_PRECISION,
    VALIDATION_MEAN_PER_CLASS,
    VALIDATION_REAL_TOP1,
    VALIDATION_TOP1,
    VALIDATION_TOP5,
    of_average,
)
from training.average_precision import evaluate_multi_label
from training.evaluate import evaluate
from training.phases import EVALUATION
from training.preemption import stop_requested
from training.processes import default_threads


class AskedToStop(Exception):
    """Any rank was asked to stop, and all know it at the same batch."""


def validate(training: Training) -> None:
    """Score every validation image once, over all ranks, and log the result; a collective.

    Raises:
        RefusedInput: Too many validation images are broken; on all ranks.
        AskedToStop: Any rank was; on all ranks.
    """
    images = training.plan.validation
    if images is None:
        return
    for scores in _scores_of_each(training, images):
        training.validation = {**training.validation, **scores}
        training.tracked.log_metrics(training.step, scores)
        training.progress.log(training.step, scores)


def _scores_of_each(training: Training, images: ShardedDataset) -> Iterator[dict[str, float]]:
    """Of the weights, then of their moving average where there is one."""
    yield _evaluate(training, images)
    if training.average is not None:
        with training.average.in_place():
            scores = _evaluate(training, images)
        yield {of_average(name): score for name, score in scores.items()}


def _evaluate(training: Training, images: ShardedDataset) -> dict[str, float]:
    config = training.plan.config
    transform = EvalTransform(
        training.architecture.image_px,
        config.data.eval_resize_px,
        resizing=Resizing.of(config.augment),
    )
    loader = eval_loader(training, images, transform)
    training.engine.eval()
    try:
        with training.aside(EVALUATION):
            scores = (_multi_label_scores if images.is_multi_label else _scores)(training, loader)
    finally:
        training.engine.train()
    scores[VALIDATION_BROKEN_IMAGES] = float(settle_evaluation(training, loader))
    return scores


def _scores(training: Training, loader: EvalLoader) -> dict[str, float]:
    scores = evaluate(
        interruptible_forward(training),
        batches_with_real_labels(loader, training.device, training.plan.real_labels),
        num_classes=training.plan.num_classes,
        device=training.device,
        distributed=training.plan.ranks.world_size > 1,
        loss_kind=training.plan.config.loss.kind,
    )
    real = {} if scores.real_top1 is None else {VALIDATION_REAL_TOP1: scores.real_top1}
    return {
        VALIDATION_TOP1: scores.top1,
        VALIDATION_TOP5: scores.top5,
        VALIDATION_MEAN_PER_CLASS: scores.mean_per_class,
        **real,
        VALIDATION_LOSS: scores.loss,
    }


def _multi_label_scores(training: Training, loader: EvalLoader) -> dict[str, float]:
    scores = evaluate_multi_label(
        interruptible_forward(training),
        (batch.to(training.device) for batch in loader),
        num_classes=training.plan.num_classes,
        device=training.device,
        distributed=training.plan.ranks.world_size > 1,
    )
    return {
        VALIDATION_MEAN_AVERAGE_PRECISION: scores.mean_average_precision,
        VALIDATION_LOSS: scores.loss,
    }


def interruptible_forward(training: Training) -> Callable[[torch.Tensor], torch.Tensor]:
    """From images uint8 on the device to logits, by the engine.

    Each call may raise AskedToStop instead, on all ranks alike, so it is a collective.
    """

    def forward(images: torch.Tensor) -> torch.Tensor:
        training.beat()
        # Every rank brings the same number of batches, so all vote, and leave off, at the same one.
        if training.step_vote.cast(stop_requested() is not None, training.saver.written).stop:
            raise AskedToStop
        logits: torch.Tensor = training.engine(normalise(images, dtype=training.dtype))
        return logits

    return forward


def eval_loader(training: Training, images: ShardedDataset, transform: EvalTransform) -> EvalLoader:
    """Batches of this rank's part of some images, each of them once over all ranks."""
    plan, config = training.plan, training.plan.config
    return EvalLoader(
        images,
        transform=transform,
        batch_images=config.evaluation.batch_images,
        rank=plan.ranks.rank,
        world_size=plan.ranks.world_size,
        loader=config.loader,
        threads=config.loader.threads or default_threads(plan.ranks.local_world_size),
        max_broken_fraction=config.data.max_broken_fraction,
        refuse_alone=False,
    )
