"""Weights that are only looked at: loaded, run over images, and what came of it written down."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from configs.errors import RefusedInput
from configs.evaluation import ScoringConfig
from configs.load import flatten, to_yaml
from data_pipeline.augment import EvalTransform, normalise
from data_pipeline.index import ShardedDataset
from data_pipeline.loader import EvalLoader
from finetune.agreement import agreed
from finetune.options import check_resolution
from finetune.quarantine import settle_images
from finetune.state import join_processes, leave_processes
from models.weights import Weights, load_weights, model_from_weights
from models.zoo import choose_attention
from tracking.lineage import resolve_weights
from tracking.provenance import command_line, environment_record
from tracking.run import check_settings, start_run
from training.console import setup_logging
from training.processes import default_threads, local_world_size
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenModel:
    """A model in eval mode on this process's device, and where its weights are from.

    Attributes:
        config: The command's options.
        accelerator: Knows the processes.
        folder: The run folder, if there is one.
        weights: As they were read; their normalisation is what `forward` applies.
        bare: The model without what Accelerate has put around its forward pass.
        image_px: Input (height, width).
        tags: MLflow run and model that the weights are from, as far as they are known.
    """

    config: ScoringConfig
    accelerator: Accelerator
    folder: RunFolder | None
    weights: Weights
    bare: nn.Module
    image_px: tuple[int, int]
    tags: dict[str, str]

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes."""
        return self.accelerator.num_processes > 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of images uint8 (B, 3, H, W) on the device."""
        logits: torch.Tensor = self.bare(normalise(images, self.weights.mean, self.weights.std))
        return logits

    def loader(self, dataset: ShardedDataset, transform: EvalTransform) -> EvalLoader:
        """This process's part of some images."""
        return EvalLoader(
            dataset,
            transform=transform,
            batch_images=self.config.batch_images,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            loader=self.config.loader,
            threads=self.config.loader.threads or default_threads(local_world_size()),
            max_broken_fraction=self.config.max_broken_fraction,
            refuse_alone=False,
        )

    def settle(self, images: EvalLoader, part: str) -> int:
        """Broken images of a loader that was read to its end, listed and counted; a collective.

        Raises:
            RefusedInput: There are too many; on all processes.
        """
        folder = None if self.folder is None else self.folder.path
        is_main = self.accelerator.is_main_process
        return settle_images(images, part, folder, is_main=is_main)

    def about_weights(self) -> dict[str, Any]:
        """What a result says of the weights."""
        return {
            "reference": self.config.weights,
            "source": self.weights.source,
            "resolution": list(self.image_px),
            **self.tags,
        }


@contextmanager
def frozen_model(config: ScoringConfig) -> Iterator[FrozenModel]:
    """The model that the weights are for, on all processes; a collective, as is leaving it.

    Raises:
        RefusedInput: The weights cannot be read, or the run folder cannot be used; on all of them.
    """
    accelerator = join_processes(config.precision)
    with ExitStack() as stack:
        stack.callback(leave_processes, accelerator)
        folder = None
        if config.run_dir is not None:
            folder = RunFolder(config.run_dir, accelerator.is_main_process)
            agreed(accelerator, lambda: _take(folder, stack))
        setup_logging(config.run_dir, accelerator.is_main_process)
        agreed(accelerator, lambda: check_settings(config.tracking))
        resolved = agreed(
            accelerator,
            lambda: resolve_weights(config.weights, config.tracking.uri, option="--weights"),
            main_first=True,
        )
        weights = agreed(accelerator, lambda: load_weights(resolved.path))
        model, image_px = agreed(accelerator, lambda: _build(config, weights, accelerator))
        yield FrozenModel(config, accelerator, folder, weights, model, image_px, resolved.tags)


def _take(folder: RunFolder, stack: ExitStack) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedInput(
            f"--run-dir {folder.path} cannot be made: {error.strerror}; choose another"
        ) from error
    stack.enter_context(folder.lock())


def _build(
    config: ScoringConfig, weights: Weights, accelerator: Accelerator
) -> tuple[nn.Module, tuple[int, int]]:
    choose_attention(accelerator.device.type)
    if config.resolution is not None:
        check_resolution(config.resolution, weights.architecture.patch_px)
    model, report = model_from_weights(
        weights, image_px=config.resolution, position_embedding=config.position_embedding
    )
    logger.info("weights: %s", weights.source)
    for line in report.lines():
        logger.info("weights: %s", line)
    side = config.resolution
    image_px = weights.architecture.image_px if side is None else (side, side)
    return accelerator.prepare_model(model.eval(), evaluation_mode=True), image_px


def write_down(
    model: FrozenModel,
    result: Mapping[str, Any],
    metrics: Mapping[str, float],
    datasets: Mapping[str, ShardedDataset],
    transfer: Mapping[str, float],
) -> None:
    """Keep a result in the run folder and in MLflow, if there is a run folder.

    Args:
        model: What was scored.
        result: Becomes result.json.
        metrics: By name.
        datasets: What was looked at, by what for ("train", "test").
        transfer: Scores, by name, that go on the page of the model that the weights are from.
    """
    config, folder = model.config, model.folder
    if folder is None or not folder.is_main:
        return
    folder.write_start_files(to_yaml(config), command_line(), environment_record())
    with start_run(
        folder.path,
        config.tracking,
        stage="finetune",
        params=flatten(config),
        tags={"task": config.task, "pretrained": config.weights, **model.tags},
        is_main=True,
    ) as tracked:
        for context, dataset in datasets.items():
            name = f"{dataset.manifest.name}-{dataset.manifest.split}"
            tracked.log_dataset(name, dataset.filter_digest or dataset.digest, context)
        tracked.log_metrics(0, metrics)
        for score, value in transfer.items():
            tracked.link_transfer(model.tags, config.task, value, score)
        folder.write_result(result)
        tracked.log_artifact(folder.path / "result.json")
    folder.write_status("finished", 0)
    logger.info("results: %s", folder.path / "result.json")
