"""Scores of weights, head and all, on a test set. Imports torch; `evaluate.py` does not."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from configs.errors import RefusedInput
from configs.evaluation import EvaluateConfig
from configs.subset import SubsetConfig
from data_pipeline.augment import EvalTransform
from data_pipeline.index import ShardedDataset, open_dataset
from data_pipeline.real_labels import RealLabels, read_real_labels
from data_pipeline.resizing import Resizing
from data_pipeline.subset import class_images
from finetune.agreement import agreed
from finetune.frozen import FrozenModel, frozen_model, write_down
from finetune.scores import (
    metrics_of,
    per_class_of,
    record_of,
    score_images,
    told,
)
from finetune.task_data import prepare_shards
from models.weights import Weights

logger = logging.getLogger(__name__)


def evaluate_weights(config: EvaluateConfig) -> dict[str, Any]:
    """Score the weights on every image once, over all processes; gives what result.json says.

    Raises:
        RefusedInput: Weights or images cannot be used, or do not belong together.
    """
    with frozen_model(config) as model:
        accelerator = model.accelerator
        dataset = agreed(accelerator, lambda: _open(config), main_first=True)
        real = agreed(accelerator, lambda: _prepare(config, model.weights, dataset))
        transform = agreed(accelerator, lambda: _transform(config, model))
        images = model.loader(dataset, transform)
        scores = score_images(
            model.forward,
            images,
            device=accelerator.device,
            distributed=model.is_distributed,
            real_labels=real,
            loss_kind=config.loss_kind,
        )
        scores = replace(scores, num_broken=model.settle(images, "test"))
        record = record_of(scores)
        result = {
            "task": config.task if config.shards is None else dataset.manifest.name,
            "test": record,
            "per_class": per_class_of(scores, dataset.classes),
            "weights": model.about_weights(),
            "data": {"place": dataset.place, "digest": dataset.filter_digest or dataset.digest},
        }
        logger.info("test: %s", told(record))
        write_down(model, result, metrics_of("test", scores), {"test": dataset}, transfer={})
        return result


def _open(config: EvaluateConfig) -> ShardedDataset:
    place = config.shards or prepare_shards(config.task, config.data_dir)[1]
    return class_images(
        open_dataset(place), SubsetConfig(label_map=config.label_map, classes=config.classes)
    )


def _prepare(
    config: EvaluateConfig, weights: Weights, dataset: ShardedDataset
) -> RealLabels | None:
    """Refuse a head that is not for these classes; read the second labelling if there is one."""
    outputs = weights.architecture.num_classes
    known = () if weights.card is None else weights.card.classes
    if outputs != dataset.num_classes:
        raise RefusedInput(
            f"--weights {config.weights} have a head for {outputs} classes, {dataset.place} has "
            f"{dataset.num_classes}. Only a head that was trained for these classes can be scored; "
            "to compare features, python -m finetune.few_shot takes any weights"
        )
    if known and known != dataset.classes:
        number = next(n for n, name in enumerate(known) if name != dataset.classes[n])
        raise RefusedInput(
            f"--weights {config.weights} are for other classes: number {number} is "
            f"{known[number]!r} there and {dataset.classes[number]!r} in {dataset.place}"
        )
    if not known:
        logger.warning(
            "the weights do not name their %d classes: taken to be in the order of %s",
            outputs,
            dataset.place,
        )
    if config.real_labels is None:
        return None
    return read_real_labels(config.real_labels, dataset, "real_labels")


def _transform(config: EvaluateConfig, model: FrozenModel) -> EvalTransform:
    card = model.weights.card
    is_finetuned = card is not None and card.extra.get("stage") == "finetune"
    resize_px = config.eval_resize_px
    if resize_px is None and is_finetuned:
        resize_px = round(min(model.image_px) * 7 / 6)
    resizing = Resizing(config.interpolation, config.antialias)
    return EvalTransform(model.image_px, resize_px, resizing=resizing)
