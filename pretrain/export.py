"""The end of a run: its weights in fp32, and what it came to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param

from data_pipeline.augment import MEAN, STD
from models.weights import WeightsCard, save_weights, weights_sha256
from pretrain.agreement import on_main
from pretrain.state import Training
from tracking.provenance import git_state

logger = logging.getLogger(__name__)


def export(training: Training) -> None:
    """Write export/ and result.json, register the weights, finish the run; a collective."""
    if training.average is not None:
        with training.average.in_place():
            average = full_weights(training)
        on_main(lambda: _save(training, average, training.folder.export_average))
    weights = full_weights(training)
    on_main(lambda: _write(training, weights))


def full_weights(training: Training) -> dict[str, torch.Tensor]:
    """The fp32 master weights by name, on the CPU of rank 0 (empty elsewhere); a collective.

    Under ZeRO they lie in parts on the ranks, and under bf16 the module holds rounded copies.
    """
    is_main = training.plan.ranks.is_main
    weights = {}
    for name, parameter in training.engine.module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        if master is None:  # stage 0: the module's own parameters are the fp32 weights
            master = parameter.detach()
        if is_main:
            weights[name] = master.to("cpu", torch.float32, copy=True)
    return weights


def weights_facts(training: Training) -> dict[str, Any]:
    """What a weights card says of any weights of this run."""
    return {
        "architecture": training.architecture,
        "mean": MEAN,
        "std": STD,
        "classes": training.plan.train.classes,
        "data_digest": training.plan.train.digest,
        "commit": git_state()[0],
    }


def _save(training: Training, weights: dict[str, torch.Tensor], folder: Path) -> str:
    """Write weights and their card; gives their digest."""
    digest = weights_sha256(weights)
    extra = {"steps": training.step, "weights_sha256": digest}
    save_weights(folder, weights, WeightsCard(**weights_facts(training), extra=extra))
    return digest


def _write(training: Training, weights: dict[str, torch.Tensor]) -> None:
    plan, config = training.plan, training.plan.config
    digest = _save(training, weights, training.folder.export)
    training.folder.write_result(
        {
            "steps": training.step,
            "images_seen": training.position,
            "epochs": training.position / plan.train.num_images,
            "metrics": training.validation,
            "weights_sha256": digest,
            "resumed_from_steps": training.resumed_from_steps,
            "seconds": round(training.seconds(), 1),
            "seed": config.seed,
            "world_size": plan.ranks.world_size,
            "data_digest": plan.train.digest,
            "filter_digest": plan.train.filter_digest,
            "train_images": plan.train.num_images,
            "broken_images": len(training.broken),
            "skipped_updates": training.health.skipped,
            "rewinds": len(training.health.rewinds),
        }
    )
    training.tracked.log_artifact(training.folder.path / "result.json")
    training.tracked.log_weights(
        training.folder.export,
        register_as=config.tracking.register_as,
        metrics=training.validation,
    )
    training.write_status("finished")
    logger.info(
        "finished: weights in %s, results in %s/result.json",
        training.folder.export,
        training.folder.path,
    )
