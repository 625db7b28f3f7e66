"""What the full run would need, from what a validation measured and from the planner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from configs.errors import RefusedInput
from launch.planner.options import parse_options
from launch.planner.request import check_request
from launch.planner.running import checkpoint_disk_bytes
from launch.validation.steps import Measured
from pretrain.plan import Plan
from training.console import format_duration

GIB = 2**30
_MOST_GPUS_OF_A_NODE = 8


def needs_text(plan: Plan, small: Plan, measured: Measured, gpus: int, gpu: str) -> str:
    """Lines on time, disk and memory of the full run.

    Args:
        plan: Of the full run.
        small: Of the validation.
        measured: By it.
        gpus: Number for which the planner is asked.
        gpu: Their kind, from the planner's table.
    """
    rows = {
        "here": _here(plan, small, measured),
        "the run": _length(plan, measured),
        "disk": _disk(plan, measured),
        f"{gpus} x {gpu}": "; ".join(_planned(plan, gpus, gpu)),
    }
    return "\n".join(f"{name:<14} {text}" for name, text in rows.items())


def _here(plan: Plan, small: Plan, measured: Measured) -> str:
    ranks = plan.ranks.world_size
    return (
        f"{ranks} rank{'s' if ranks > 1 else ''} on {measured.device} in {measured.precision}, "
        f"micro batch {small.micro_images} x {small.accumulation_steps} (the run's: "
        f"{plan.micro_images} x {plan.accumulation_steps}): "
        f"{measured.images_per_second:,.1f} images/s in the second step, "
        f"{measured.memory_bytes / GIB:.1f} GiB"
    )


def _length(plan: Plan, measured: Measured) -> str:
    images = plan.total_steps * plan.config.batch.global_images
    seconds = images / measured.images_per_second
    return (
        f"{plan.total_steps:,} steps of {plan.config.batch.global_images:,} images, "
        f"{images / plan.train.num_images:,.1f} epochs: "
        f"{format_duration(seconds)} at this rate"
    )


def _disk(plan: Plan, measured: Measured) -> str:
    options, size = plan.config.checkpoint, measured.checkpoint_bytes
    needed = checkpoint_disk_bytes(size, options, plan.total_steps)
    place = next(path for path in plan.run_dir.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    verdict = "" if needed <= free else ": NOT ENOUGH"
    return (
        f"{needed / 1e9:,.2f} GB for checkpoints of {size / 1e9:,.2f} GB; "
        f"{place} has {free / 1e9:,.1f} GB free{verdict}"
    )


def _planned(plan: Plan, gpus: int, gpu: str) -> Iterator[str]:
    """What the planner says; it also says why it cannot."""
    per_node = max(n for n in range(1, _MOST_GPUS_OF_A_NODE + 1) if gpus % n == 0)
    words = ["--config", "-", "--gpus", str(gpus), "--gpu", gpu, "--gpus-per-node", str(per_node)]
    try:
        request = check_request(parse_options(words), plan.config)
        from launch.planner.estimate import estimate

        told: dict[str, Any] = estimate(request)
    except RefusedInput as problem:
        yield f"not planned: {problem}"
        return
    memory, rate = told["memory"], told["throughput"]
    chosen = memory["configured"]
    yield (
        f"ZeRO {chosen['zero_stage']}, micro batch {chosen['micro_images']} x "
        f"{chosen['accumulation_steps']}: {chosen['total_bytes'] / GIB:.1f} of "
        f"{memory['usable_bytes'] / GIB:.1f} GiB, "
        f"{'fits' if chosen['fits'] else 'DOES NOT FIT'}"
    )
    yield (
        f"{rate['images_per_second']:,.0f} images/s at {rate['mfu']:.0%} MFU, "
        f"{format_duration(told['schedule']['days'] * 86_400)} (python -m launch.plan says more)"
    )
