"""Model, optimizer and DeepSpeed's engine around them."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.config import DeepSpeedConfigError
from pydantic import ValidationError

from configs.deepspeed_options import deepspeed_options
from configs.errors import RefusedInput
from models.param_groups import weight_decay_groups
from models.vit import checkpoint_blocks
from models.zoo import Architecture, build_model
from pretrain.plan import Plan
from training.precision import Precision

logger = logging.getLogger(__name__)


def build_engine(plan: Plan, architecture: Architecture, precision: Precision) -> Any:
    """Model and AdamW inside a DeepSpeed engine; the learning rate is set by each step.

    Raises:
        RefusedInput: DeepSpeed does not know what stands in the config's `deepspeed:` block.
    """
    config = plan.config
    # deepspeed.zero.Init around timm's constructor would spoil its initialisation without a word.
    model = build_model(
        architecture,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        head_bias=config.model.head_bias,
        seed=config.seed,
    )
    checkpoint_blocks(model, config.model.checkpoint_blocks)
    optimizer = torch.optim.AdamW(
        weight_decay_groups(model, config.optim.weight_decay),
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        fused=True,
    )
    options = deepspeed_options(
        config,
        micro_images=plan.micro_images,
        accumulation_steps=plan.accumulation_steps,
        precision=precision,
    )
    # The bf16 optimizer of stage 1 prints its memory at six points, past all logging.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=options, dist_init_required=False
            )
        except (ValidationError, DeepSpeedConfigError) as problem:
            raise RefusedInput(_refused(problem)) from problem
    if config.compile:
        # In place: modules and parameters keep their names, so checkpoints and exports do not care.
        engine.compile()
        logger.info("torch.compile: the first step takes minutes, and so does the first evaluation")
    return engine


def _refused(problem: ValidationError | DeepSpeedConfigError) -> str:
    what = str(problem)
    if isinstance(problem, ValidationError):
        what = "; ".join(
            f"{'.'.join(map(str, one['loc']))} = {one['input']!r}: {one['msg'].lower()}"
            for one in problem.errors()
        )
    return f"DeepSpeed refuses its options ({what}); correct the deepspeed: block of the config"
