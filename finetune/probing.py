"""Few-shot linear probes of weights on a task. Imports torch; `few_shot.py` does not."""

from __future__ import annotations

import logging
from statistics import mean, stdev
from typing import Any

import torch

from configs.evaluation import FewShotRunConfig
from data_pipeline.augment import SquareTransform
from data_pipeline.few_shot_images import FewShotImages, open_few_shot_images
from data_pipeline.index import ShardedDataset
from data_pipeline.resizing import Resizing
from finetune.agreement import agreed
from finetune.frozen import FrozenModel, frozen_model, write_down
from finetune.task_data import prepare_shards
from models.features import head_inputs
from tracking.metric_names import few_shot_scores
from training.few_shot import Features, collect_features, few_shot_top1, told

logger = logging.getLogger(__name__)


def probe_weights(config: FewShotRunConfig) -> dict[str, Any]:
    """Fit and score the probes over all processes; gives what result.json says.

    Raises:
        RefusedInput: Weights or images cannot be used.
    """
    with frozen_model(config) as model:
        task = agreed(model.accelerator, lambda: _open(config), main_first=True)
        if task.notice:
            logger.warning("%s", task.notice)
        train, test = (
            _features(config, model, images, part)
            for images, part in ((task.train, "train"), (task.test, "test"))
        )
        top1 = few_shot_top1(
            train,
            test,
            task.choices,
            num_classes=task.train.num_classes,
            ridge=config.ridge,
            distributed=model.is_distributed,
        )
        result = {
            "task": config.task,
            "few_shot": {str(shots): _record(values) for shots, values in top1.items()},
            "seeds": list(config.seeds),
            "test_images": task.test.num_images,
            "weights": model.about_weights(),
        }
        logger.info("few-shot %s: %s", config.task, told(top1))
        datasets = {"train": task.train, "test": task.test}
        transfer = {f"{shots}_shot_top1": mean(values) for shots, values in top1.items()}
        metrics = few_shot_scores(config.task, top1)
        write_down(model, result, metrics, datasets, transfer)
        return result


def _open(config: FewShotRunConfig) -> FewShotImages:
    return open_few_shot_images(config.task, prepare_shards(config.task, config.data_dir), config)


def _features(
    config: FewShotRunConfig, model: FrozenModel, images: ShardedDataset, part: str
) -> Features:
    resizing = Resizing(config.interpolation, config.antialias)
    transform = agreed(
        model.accelerator,
        lambda: SquareTransform(
            model.image_px, config.resize_px, resizing=resizing, option="--resize-px"
        ),
    )
    loader, device = model.loader(images, transform), model.accelerator.device
    with head_inputs(model.bare) as features_of_last:

        def forward(batch: torch.Tensor) -> torch.Tensor:
            model.forward(batch)
            return features_of_last()

        batches = ((*batch.to(device), batch.rows) for batch in loader)
        features = collect_features(forward, batches, device)
    model.settle(loader, part)
    return features


def _record(values: list[float]) -> dict[str, Any]:
    spread = {"top1_std": stdev(values)} if len(values) > 1 else {}
    return {"top1": mean(values), **spread, "top1_by_seed": values}
