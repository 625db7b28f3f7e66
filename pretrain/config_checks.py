"""What a config alone shows to be impossible, beyond what its types refuse."""

from __future__ import annotations

import os
import shutil

from configs.errors import RefusedInput
from configs.profile_steps import profile_steps
from configs.schema import PretrainConfig


def check_config(config: PretrainConfig) -> None:
    """Refuse options that do not go together, or not on this machine.

    Raises:
        RefusedInput: Naming keys and values.
    """
    _check_sizes(config)
    _check_offload(config)
    if config.compile:
        _check_compiler()


def check_profile(config: PretrainConfig, total_steps: int, world_size: int) -> None:
    """Refuse to profile where nothing would be: no such step, or no such rank.

    Raises:
        RefusedInput: Naming the option.
    """
    if config.profile is None:
        return
    first, _ = profile_steps(config.profile)
    if first >= total_steps:
        raise RefusedInput(
            f"profile = {config.profile}: the run ends at step {total_steps}; give earlier steps"
        )
    if min(config.profile_ranks, default=world_size) >= world_size:
        given = " ".join(map(str, config.profile_ranks)) or "none"
        raise RefusedInput(
            f"profile_ranks = {given}: there is none of them among the ranks 0 to {world_size - 1}"
        )


def _check_sizes(config: PretrainConfig) -> None:
    image_px = config.model.image_px
    sizes = {
        "data.eval_resize_px": config.data.eval_resize_px,
        "augment.resize_px": config.augment.resize_px,
        "few_shot.resize_px": config.few_shot.resize_px,
    }
    for name, value in sizes.items():
        if value is not None and value < image_px:
            raise RefusedInput(
                f"{name} = {value} is below model.image_px = {image_px}; give at least {image_px}"
            )


def _check_offload(config: PretrainConfig) -> None:
    options = config.deepspeed.get("zero_optimization", {})
    for part in ("offload_optimizer", "offload_param"):
        if options.get(part, {}).get("device") == "nvme":
            raise RefusedInput(
                f"deepspeed.zero_optimization.{part}.device = nvme: a checkpoint copies the state "
                "from memory, so this could not be saved; use device: cpu, or more ranks"
            )


def _check_compiler() -> None:
    """torch.compile writes C++ on a CPU, and Triton's launchers in C on a GPU."""
    names = (os.environ.get("CXX", "g++"), "clang++")
    if not any(shutil.which(name) for name in names):
        raise RefusedInput(
            f"compile: torch.compile needs a C++ compiler, and none of {', '.join(names)} is on "
            "PATH; install one, name it in CXX, or leave --compile out"
        )
