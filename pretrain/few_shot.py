"""Few-shot linear probes of the model while training goes on: how well its features transfer."""

from __future__ import annotations

import logging

import torch

from data_pipeline.augment import SquareTransform
from data_pipeline.few_shot_images import FewShotImages
from data_pipeline.index import ShardedDataset
from data_pipeline.resizing import Resizing
from models.features import head_inputs
from pretrain.plan import Plan
from pretrain.quarantine import settle_evaluation
from pretrain.state import Training
from pretrain.validation import eval_loader, interruptible_forward
from tracking.metric_names import few_shot_scores, of_average
from training.few_shot import ByShots, Features, collect_features, few_shot_top1, told
from training.phases import EVALUATION

logger = logging.getLogger(__name__)


def probe_is_due(plan: Plan, step: int) -> bool:
    """Whether probes are fit after `step`: every so many steps or epochs, and after the last."""
    options = plan.config.few_shot
    every = options.every_steps
    if options.every_epochs is not None:
        images = options.every_epochs * plan.train.num_images
        every = max(1, round(images / plan.config.batch.global_images))
    return bool(plan.few_shot) and plan.is_due(every or plan.total_steps, step)


def probe(training: Training) -> None:
    """Fit and score the probes of every task over all ranks, and log them; a collective.

    Raises:
        RefusedInput: Too many of the images are broken; on all ranks.
        AskedToStop: Any rank was; on all ranks.
    """
    _log(training, {task.name: _probe_task(training, task) for task in training.plan.few_shot})
    if training.average is not None:
        with training.average.in_place():
            averaged = {task.name: _probe_task(training, task) for task in training.plan.few_shot}
        _log(training, averaged, of_weight_average=True)


def _log(training: Training, top1: dict[str, ByShots], *, of_weight_average: bool = False) -> None:
    for task, scores in top1.items():
        values = few_shot_scores(task, scores)
        if of_weight_average:
            values = {of_average(name): value for name, value in values.items()}
        training.validation = {**training.validation, **values}
        training.tracked.log_metrics(training.step, values)
        whose = " of the moving average" if of_weight_average else ""
        logger.info("step %d: few-shot %s%s: %s", training.step, task, whose, told(scores))


def _probe_task(training: Training, task: FewShotImages) -> ByShots:
    training.engine.eval()
    try:
        with training.aside(EVALUATION):
            train = _features(training, task.train, f"few-shot-{task.name}-train")
            test = _features(training, task.test, f"few-shot-{task.name}-test")
            return few_shot_top1(
                train,
                test,
                task.choices,
                num_classes=task.train.num_classes,
                ridge=training.plan.config.few_shot.ridge,
                distributed=training.plan.ranks.world_size > 1,
            )
    finally:
        training.engine.train()


def _features(training: Training, images: ShardedDataset, part: str) -> Features:
    """Of this rank's part of some images; `part` names the list of those that are broken."""
    config = training.plan.config
    transform = SquareTransform(
        training.architecture.image_px,
        config.few_shot.resize_px,
        resizing=Resizing.of(config.augment),
    )
    loader = eval_loader(training, images, transform)
    run = interruptible_forward(training)
    with head_inputs(training.engine.module) as features_of_last:

        def forward(batch: torch.Tensor) -> torch.Tensor:
            run(batch)
            return features_of_last()

        batches = ((*batch.to(training.device), batch.rows) for batch in loader)
        features = collect_features(forward, batches, training.device)
    settle_evaluation(training, loader, part)
    return features
