"""The one place where DeepSpeed's option names are spelled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from configs.schema import PretrainConfig

_GROUPS = ("zero_optimization", "bf16", "fp16", "data_types")
_OFFLOADED = ("offload_optimizer", "offload_param")
# What decides this, so that plan, checkpoints and DeepSpeed never differ about it.
_OPTION_OF = {
    "train_batch_size": "batch.global_images",
    "train_micro_batch_size_per_gpu": "batch.micro_images",
    "gradient_accumulation_steps": "batch.accumulation_steps",
    "gradient_clipping": "optim.clip_norm",
    "zero_optimization.stage": "zero.stage",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "optimizer": "the options of optim",
    "scheduler": "the options of schedule",
}


def check_deepspeed_block(block: Mapping[str, Any]) -> None:
    """Refuse a `deepspeed:` block of another shape, or with what our options decide.

    Raises:
        ValueError: Naming the key.
    """
    zero = block.get("zero_optimization", {})
    groups = {name: block[name] for name in _GROUPS if name in block}
    if isinstance(zero, dict):
        groups |= {f"zero_optimization.{name}": zero[name] for name in _OFFLOADED if name in zero}
    for name, value in groups.items():
        if not isinstance(value, dict):
            raise ValueError(
                f"deepspeed.{name} = {value!r} is a group; indent its keys below it, or leave out"
            )
    for key, option in _OPTION_OF.items():
        group, _, last = key.rpartition(".")
        if last in (block.get(group, {}) if group else block):
            raise ValueError(f"deepspeed.{key}: set {option} instead, which decides it")


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
    block is merged last, key by key: it can add anything DeepSpeed understands, and change what no
    option of ours decides (`check_deepspeed_block`).
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
