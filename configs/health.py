"""Options of what a run does when its numbers go wrong, or when nothing happens any more."""

from __future__ import annotations

from pydantic import Field

from configs.section import CountFromZero, PositiveFloat, PositiveInt, Section


class HealthConfig(Section):
    """What a run does when its numbers go wrong or it stalls."""

    max_skipped: CountFromZero = Field(
        10,
        description=(
            "Updates in a row that may be left out because loss or gradient is not finite; one "
            "more, and the run goes back to the checkpoint before and around their images."
        ),
    )
    spike_score: PositiveFloat | None = Field(
        None,
        description=(
            "Go back, too, when the logged loss lies this many robust standard deviations above "
            "those before it; None never does."
        ),
    )
    spike_window: PositiveInt = Field(
        50, description="Logged losses that a new one is compared with."
    )
    max_rewinds: CountFromZero = Field(
        3, description="Times a run may go back; at the next trouble it stops with a report."
    )
    stall_seconds: PositiveFloat | None = Field(
        480.0,
        description=(
            "Without a step, an evaluated batch or a written checkpoint for so many seconds, write "
            "the stacks of all ranks to the run folder and exit with 75; None waits for ever. "
            "Below the 600 s after which a collective gives up (DEEPSPEED_TIMEOUT, in minutes)."
        ),
    )
