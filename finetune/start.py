"""What every learning rate of a run starts from: weights at the task's resolution, a zero head."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import nn

from configs.schema import FinetuneConfig
from data_pipeline.augment import MEAN, STD
from finetune.options import check_resolution, input_px
from models.vit import checkpoint_blocks
from models.weights import load_weights, model_from_weights, weights_sha256
from models.zoo import Architecture, build_model, choose_attention
from tracking.lineage import ResolvedWeights

logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]
PerChannel = tuple[float, float, float]


@dataclass(frozen=True)
class Start:
    """A model with its starting weights.

    Attributes:
        model: On the CPU, in fp32.
        architecture: Of the model, at the task's resolution and number of classes.
        mean: Normalisation of the three channels, on the scale 0 to 1, as in pretraining.
        std: The same.
        weights: A copy of the starting weights, to which each learning rate returns.
        sha256: Identity of the starting weights, new head included.
        source: Where they are from.
        tags: The MLflow run and model they are from, as far as they are known.
    """

    model: nn.Module
    architecture: Architecture
    mean: PerChannel
    std: PerChannel
    weights: StateDict
    sha256: str
    source: str
    tags: dict[str, str]


def copy_of_weights(model: nn.Module) -> StateDict:
    """The model's state dict as it is now, copied to the CPU."""
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def build_start(
    config: FinetuneConfig, resolved: ResolvedWeights, num_classes: int, device_type: str
) -> Start:
    """Build the model at the task's resolution with a new head of zeros.

    From scratch, the weights are drawn from `config.seed`.

    Raises:
        RefusedInput: The weights cannot be read, or do not fit the resolution.
    """
    choose_attention(device_type)
    if config.pretrained == "scratch":
        return _from_scratch(config, num_classes)
    weights = load_weights(resolved.path)
    if config.resolution is not None:
        check_resolution(config.resolution, weights.architecture.patch_px)
    model, report = model_from_weights(
        weights,
        image_px=config.resolution,
        num_classes=num_classes,
        position_embedding=config.position_embedding,
        seed=config.seed,
    )
    checkpoint_blocks(model, config.model.checkpoint_blocks)
    logger.info("weights: %s", weights.source)
    for line in report.lines():
        logger.info("weights: %s", line)
    architecture = weights.architecture.with_new_head(num_classes)
    if config.resolution is not None:
        architecture = replace(architecture, image_px=(config.resolution, config.resolution))
    normalisation = (weights.mean, weights.std)
    return _start(model, architecture, normalisation, weights.source, resolved.tags)


def _from_scratch(config: FinetuneConfig, num_classes: int) -> Start:
    sized = config.model.model_copy(update={"image_px": input_px(config)})
    architecture = Architecture.from_config(sized, num_classes)
    model = build_model(
        architecture,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        seed=config.seed,
    )
    checkpoint_blocks(model, config.model.checkpoint_blocks)
    logger.info("weights: random, from seed %d", config.seed)
    return _start(model, architecture, (MEAN, STD), "scratch", {})


def _start(
    model: nn.Module,
    architecture: Architecture,
    normalisation: tuple[PerChannel, PerChannel],
    source: str,
    tags: dict[str, str],
) -> Start:
    weights = copy_of_weights(model)
    return Start(
        model=model,
        architecture=architecture,
        mean=normalisation[0],
        std=normalisation[1],
        weights=weights,
        sha256=weights_sha256(weights),
        source=source,
        tags=tags,
    )
