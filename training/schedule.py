"""Learning rate as a pure function of the step."""

import math
from typing import Literal

ScheduleKind = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int, *, kind: ScheduleKind, peak: float, total_steps: int, warmup_steps: int
) -> float:
    """Learning rate of the update about to be made.

    Rises linearly from 0 at step 0 to `peak` at `warmup_steps`, then falls to 0 at `total_steps`
    (the step after the last), along half a cosine or a line, or stays.

    Args:
        step: Updates made so far, from 0.
        kind: Shape after the warmup.
        peak: Highest learning rate.
        total_steps: Updates of the whole run.
        warmup_steps: Updates of the warmup, below `total_steps` (see `fit_warmup`).

    Source: the schedule function of the authors' published code (arXiv:2010.11929).
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if kind == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if kind == "linear":
        return peak * (1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


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
