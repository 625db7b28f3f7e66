"""Whether a checkpoint and a config belong to the same run.

Resuming promises the weights of the undisturbed run, so everything that would change them is
refused by name; what may change is listed here and in docs/pretraining.md. No torch is imported:
a refusal comes at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import RefusedInput
from configs.load import flatten
from configs.schema import PretrainConfig
from pretrain.plan import Plan
from training.checkpoint_marker import MARKER
from training.run_folder import RunFolder, open_run_folder

# A name that ends in a dot stands for its whole section.
MAY_CHANGE = (
    "run_dir",
    "resume",
    "schedule.total_steps",
    "schedule.epochs",
    "data.train",  # the folder may move; its digest is compared instead
    "data.val",
    "data.val_real_labels",
    "data.classes",  # and these files: the images and labels that they choose are compared
    "data.label_map",
    "data.exclude",
    "data.cache_dir",  # where bytes come from does not change which they are
    "data.cache_bytes",
    "data.retry_seconds",
    "data.stall_seconds",
    "data.absolute_shards",
    "data.allow_commands",
    "data.max_broken_fraction",
    "data.eval_resize_px",
    "compile",  # how the same is computed
    "model.checkpoint_blocks",
    "batch.micro_images",  # with the number of ranks; the images of a step stay the same
    "batch.accumulation_steps",
    "zero.",
    "loader.",
    "checkpoint.",
    "evaluation.",
    "few_shot.",
    "health.",
    "logging.",
    "profile",
    "profile_ranks",
    "tracking.",
)
_SHOWN_DIFFERENCES = 5


def run_identity(plan: Plan, precision: str | None = None) -> dict[str, str | int | float | bool]:
    """Every value that a resumed run must share with the run it goes on with, by option name.

    `precision` is "fp32", "bf16" or "fp16"; None leaves it out (it takes torch to resolve "auto").
    """
    values = {
        name: value
        for name, value in flatten(plan.config).items()
        if not any(
            name == free or (free[-1] == "." and name.startswith(free)) for free in MAY_CHANGE
        )
    }
    del values["precision"]
    if precision is not None:
        values["precision"] = precision
    # The resolved value, so that writing out a default is no difference.
    values |= {"model.num_classes": plan.num_classes}
    return values | {f"sample order: {name}": v for name, v in plan.order.identity().items()}


def check_same_run(
    saved: Mapping[str, Any], plan: Plan, where: Path, precision: str | None
) -> None:
    """Refuse to go on from a checkpoint with other settings than those it was made with.

    Args:
        saved: Metadata of the checkpoint, as `pretrain.checkpoint` wrote it.
        plan: The run about to start.
        where: The checkpoint's folder, for the message.
        precision: "fp32", "bf16" or "fp16"; None while it is not known.

    Raises:
        RefusedInput: Naming every difference with both values.
    """
    if "zero_stage" not in saved:
        raise RefusedInput(
            f"{where} was saved by an older version in another format; finish the run with that "
            "version, or start a new one with another --run-dir"
        )
    defaults = flatten(PretrainConfig())  # an option that is newer than the checkpoint
    before, now = saved["identity"], run_identity(plan, precision)
    different = [name for name in now if before.get(name, defaults.get(name)) != now[name]]
    if different:
        listed = "; ".join(
            f"{name} was {before.get(name, defaults.get(name))}, now {now[name]}"
            for name in different[:_SHOWN_DIFFERENCES]
        )
        more = len(different) - _SHOWN_DIFFERENCES
        raise RefusedInput(
            f"cannot go on from {where} with other settings: {listed}"
            + (f"; and {more} more" if more > 0 else "")
            + "; put them back, or start a new run with another --run-dir "
            "(docs/pretraining.md lists what may change)"
        )
    if saved["step"] > plan.total_steps:
        raise RefusedInput(
            f"schedule.total_steps = {plan.total_steps} lies before the checkpoint {where}; give "
            f"at least {saved['step']}, or start a new run with another --run-dir"
        )


def check_start(plan: Plan) -> str | None:
    """Look at the run folder before anything slow; every rank does, and finds the same.

    Returns:
        A sentence if the run is finished and there is nothing to do, else None.

    Raises:
        RefusedInput: The folder does not fit `resume`, or its newest checkpoint not the config.
    """
    config = plan.config
    folder = open_run_folder(plan.run_dir, resume=config.resume, is_main=True)
    if (newest := _newest_marker(folder)) is not None:
        where, metadata = newest
        if metadata["step"] <= plan.total_steps or not folder.finished():
            check_same_run(metadata, plan, where, None)
    status = folder.status()
    if folder.finished() and int(status["step"]) >= plan.total_steps:
        return (
            f"{plan.run_dir} is finished (step {status['step']}), nothing to do; "
            "--schedule.total-steps N beyond that goes on, another --run-dir starts anew"
        )
    return None


def _newest_marker(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    """Metadata of the newest marker that can be read; its files are checked when it is loaded."""
    for path in sorted(folder.checkpoints.glob(f"step-*/{MARKER}"), reverse=True):
        try:
            return path.parent, json.loads(path.read_text(encoding="utf-8"))["metadata"]
        except (OSError, ValueError, KeyError):
            continue
    return None
