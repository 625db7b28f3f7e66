"""The one place where DeepSpeed's option names are spelled."""

from __future__ import annotations

import copy
from typing import Any, Literal

from configs.schema import PretrainConfig


def deepspeed_options(
    config: PretrainConfig,
    *,
    micro_images: int,
    accumulation_steps: int,
    precision: Literal["fp32", "bf16", "fp16"],
) -> dict[str, Any]:
    """The dictionary `deepspeed.initialize` takes.

    The optimizer is ours (torch AdamW) and the learning rate is set by the loop, so neither
    appears. Gradients accumulate in fp32 whatever the compute precision. The config's `deepspeed:`
    block is merged last, key by key: it can add anything DeepSpeed understands and change the rest.
    """
    zero = config.zero
    options: dict[str, Any] = {
        "train_batch_size": config.batch.global_images,
        "train_micro_batch_size_per_gpu": micro_images,
        "gradient_accumulation_steps": accumulation_steps,
        "zero_optimization": {"stage": zero.stage},
        "zero_allow_untested_optimizer": True,
        # torch AdamW stays ours when it is offloaded to the CPU: DeepSpeed's compiles for minutes.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        # DeepSpeed's own default is the precision of the passes.
        "communication_data_type": "fp32" if zero.sum_precision == "fp32" else precision,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        # Its throughput timer waits for the device twice in every micro batch; ours does not.
        "timers": {"throughput": {"enabled": False}},
    }
    if zero.offload_optimizer:
        options["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.optim.clip_norm is not None:
        options["gradient_clipping"] = config.optim.clip_norm
    return _merged(options, config.deepspeed)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in extra.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if nested else copy.deepcopy(value)
    return result
