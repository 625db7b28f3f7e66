"""Learning rate as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["cosine", "linear", "rsqrt", "constant"]


@dataclass(frozen=True)
class Tail:
    """What only some shapes have.

    Attributes:
        timescale_steps: rsqrt: so many steps after the warmup the rate is divided by sqrt(2).
        cooldown_steps: Last steps of the run, over which the rate falls linearly to 0.
    """

    timescale_steps: int = 10_000
    cooldown_steps: int = 0


def learning_rate(
    step: int,
    *,
    kind: ScheduleKind,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    tail: Tail = Tail(),
) -> float:
    """Learning rate of the update about to be made.

    Rises linearly from 0 at step 0 to `peak` at `warmup_steps`. Then cosine and linear fall to 0 at
    `total_steps` (the step after the last), along half a cosine or a line; rsqrt is divided by
    sqrt(1 + (step - warmup_steps) / timescale_steps); constant stays. A cooldown multiplies by
    what is left of it, so a run that stopped before it can be made longer without a break.

    Args:
        step: Updates made so far, from 0.
        kind: Shape after the warmup.
        peak: Highest learning rate.
        total_steps: Updates of the whole run.
        warmup_steps: Updates of the warmup, below `total_steps` (see `fit_warmup`).
        tail: Timescale and cooldown.

    Source: the schedule function of the authors' published code (arXiv:2010.11929); reciprocal
    square root with cooldown as in "Scaling Vision Transformers" (arXiv:2106.04560).
    """
    rate = peak * _shape(kind, step - warmup_steps, total_steps - warmup_steps, tail)
    if step < warmup_steps:
        rate = peak * step / warmup_steps
    if tail.cooldown_steps:
        rate *= min(1.0, max(0.0, (total_steps - step) / tail.cooldown_steps))
    return rate


def _shape(kind: ScheduleKind, step: int, total_steps: int, tail: Tail) -> float:
    """Share of the peak, `step` updates after the warmup."""
    if kind == "constant":
        return 1.0
    if kind == "rsqrt":
        return 1.0 / math.sqrt(1.0 + max(0, step) / tail.timescale_steps)
    progress = min(1.0, step / max(1, total_steps))
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def fit_warmup(warmup_steps: int, total_steps: int) -> tuple[int, str | None]:
    """Warmup that fits the run: shorter runs get a tenth of their steps.

    Returns:
        Warmup steps below `total_steps`, and a notice for the user if they were changed.
    """
    if warmup_steps < total_steps:
        return warmup_steps, None
    fitted = 0 if total_steps < 2 else max(1, total_steps // 10)
    notice = (
        f"warmup of {warmup_steps} steps does not fit a run of {total_steps} steps: "
        f"warming up for {fitted} instead"
    )
    return fitted, notice
