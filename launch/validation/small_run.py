"""A run made small enough for two steps on any machine, and otherwise what it is."""

from __future__ import annotations

import dataclasses

import numpy as np

from configs.groups import BatchConfig
from configs.schema import PretrainConfig
from data_pipeline.few_shot_images import FewShotImages
from data_pipeline.index import ShardedDataset
from models.flops import forward_flops_per_image
from models.zoo import Architecture
from pretrain.plan import Plan

_MOST_ACCUMULATED = 2
# Of one step on a CPU: seconds, however large the model is.
_CPU_FLOPS = 5e11
_LEAST_IMAGES = 2  # mixup needs partners
_EVALUATED_BATCHES = 2


def small_plan(plan: Plan, device_type: str) -> Plan:
    """The plan of a validation, in a run folder beside the real one.

    On a GPU the micro batch is the run's, so that its memory is put to the test; on a CPU it is
    what takes seconds. Of more than two micro batches a step two are left, of the validation
    images two batches a rank, of each task's few-shot probes the smallest. The learning
    rate is that of the whole run's first steps.
    """
    accumulation_steps = min(plan.accumulation_steps, _MOST_ACCUMULATED)
    most = plan.micro_images
    if device_type == "cpu":
        architecture = Architecture.from_config(plan.config.model, plan.num_classes)
        step_flops = 3 * forward_flops_per_image(architecture) * accumulation_steps
        most = max(_LEAST_IMAGES, int(_CPU_FLOPS / step_flops))
    micro_images = min(plan.micro_images, most)
    world_size = plan.ranks.world_size
    batch = BatchConfig(
        global_images=world_size * micro_images * accumulation_steps, micro_images=micro_images
    )
    config = _small_config(plan.config, batch, most)
    number = world_size * config.evaluation.batch_images * _EVALUATED_BATCHES
    validation = None if plan.validation is None else _first(plan.validation, number)
    return dataclasses.replace(
        plan,
        config=config,
        run_dir=plan.run_dir.with_name(f"{plan.run_dir.name}.validate"),
        validation=validation,
        few_shot=tuple(_small_task(task, number) for task in plan.few_shot),
        micro_images=micro_images,
        accumulation_steps=accumulation_steps,
        notices=(),
    )


def _first(images: ShardedDataset, number: int) -> ShardedDataset:
    return images.select(np.arange(min(number, images.num_images)))


def _small_task(task: FewShotImages, number: int) -> FewShotImages:
    """The probe on the fewest images a class, scored on `number` images."""
    fewest = min(task.choices)
    rows = np.sort(task.choices[fewest])
    choices = {fewest: np.arange(len(rows))}
    return dataclasses.replace(
        task, train=task.train.select(rows), test=_first(task.test, number), choices=choices
    )


def _small_config(config: PretrainConfig, batch: BatchConfig, most_images: int) -> PretrainConfig:
    evaluation = config.evaluation
    few = evaluation.model_copy(update={"batch_images": min(evaluation.batch_images, most_images)})
    return config.model_copy(
        update={
            "batch": batch,
            "evaluation": few,
            "profile": None,
            "logging": config.logging.model_copy(update={"every_steps": 1}),
            "tracking": config.tracking.model_copy(update={"enabled": False, "register_as": None}),
        }
    )
