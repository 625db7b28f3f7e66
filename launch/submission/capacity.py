"""Whether checkpoints fit on the disk and a step into the GPUs' memory, as the planner sees it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from configs.errors import RefusedInput
from configs.schema import PretrainConfig
from launch.planner.options import parse_options
from launch.planner.request import check_request
from launch.submission.job import Job, Run, Submission

GIB = 2**30


def check_disk(job: Job[PretrainConfig], num_classes: Callable[[Run[PretrainConfig]], int]) -> str:
    """Compare what the checkpoints of all runs take with what is free where they go.

    Raises:
        RefusedInput: They would not fit.
    """
    from launch.planner.running import checkpoint_disk_bytes
    from models.zoo import Architecture, build_model
    from pretrain.state_memory import checkpoint_bytes

    needed = there = 0
    for run in job.runs:
        architecture = Architecture.from_config(run.config.model, num_classes(run))
        model = build_model(architecture, device="meta")
        number = sum(parameter.numel() for parameter in model.parameters())
        size = checkpoint_bytes(number, run.config.optim.ema_decay is not None)
        needed += checkpoint_disk_bytes(size, run.config.checkpoint)
        there += _size(run.folder / "checkpoints")
    place = next(path for path in job.folder.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    told = f"checkpoints take {needed / 1e9:.1f} GB, milestones on top; {place} has "
    told += f"{free / 1e9:.1f} GB free" + (f" and {there / 1e9:.1f} GB of them" if there else "")
    if needed > free + there:
        raise RefusedInput(
            f"{told}; free some, lower checkpoint.keep, or give --run-dir on another disk"
        )
    return told


def check_memory(submission: Submission) -> str | None:
    """Ask the planner whether a step fits; None where there are no GPUs.

    Raises:
        RefusedInput: It does not, or the planner cannot tell.
    """
    job, options = submission.pretraining, submission.options
    if not job.gpus_per_node:
        return None
    if submission.site.gpu is None:
        return "not looked at: --gpu KIND says what the run must fit into"
    words = ["--config", str(options.config), "--gpu", submission.site.gpu]
    words += ["--gpus", str(job.world_size), "--gpus-per-node", str(job.gpus_per_node)]
    from launch.planner.estimate import estimate

    told: dict[str, None] = {}
    for run in job.runs:
        plan = estimate(check_request(parse_options(words), run.config))
        memory = plan["memory"]
        chosen, best = memory["configured"], memory["recommended"]
        setting = (
            f"ZeRO {chosen['zero_stage']} with micro batches of {chosen['micro_images']} takes "
            f"{chosen['total_bytes'] / GIB:.1f} of {memory['usable_bytes'] / GIB:.1f} GiB"
        )
        if not chosen["fits"]:
            advice = "nothing fits; give more nodes or a larger GPU"
            if best:
                advice = (
                    f"--zero.stage {best['zero_stage']} --batch.micro-images "
                    f"{best['micro_images']} fits"
                )
            raise RefusedInput(f"on {plan['gpus']['name']}, {setting}; {advice}")
        told[setting] = None
    return "; ".join(told)


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).stat().st_size
            except OSError:
                continue  # removed meanwhile
    return total
