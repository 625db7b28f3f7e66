"""Options of the learning rate over the steps of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.section import CountFromZero, PositiveFloat, PositiveInt, Section


class ScheduleConfig(Section):
    """Learning rate over steps: linear warmup, then decay."""

    kind: Literal["cosine", "linear", "rsqrt", "constant"] = Field(
        "cosine",
        description=(
            "Shape after the warmup. cosine and linear end at 0; rsqrt (reciprocal square root) "
            "and constant do not depend on the run's length, and end at 0 with a cooldown."
        ),
    )
    total_steps: PositiveInt | None = Field(
        None, description="Optimizer steps of the whole run; give this or schedule.epochs."
    )
    epochs: PositiveFloat | None = Field(
        None, description="Passes over the training set; give this or schedule.total-steps."
    )
    warmup_steps: CountFromZero = Field(
        10_000,
        description=(
            "Steps of linear warmup from 0; scaled down, with a notice, when the run is shorter."
        ),
    )
    timescale_steps: PositiveInt = Field(
        10_000, description="rsqrt: so many steps after the warmup the rate is divided by sqrt(2)."
    )
    cooldown_steps: CountFromZero = Field(
        0,
        description=(
            "rsqrt and constant: last steps, over which the rate falls linearly to 0; at most what "
            "follows the warmup."
        ),
    )

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if self.total_steps is not None and self.epochs is not None:
            raise ValueError(
                f"schedule.total_steps = {self.total_steps} and schedule.epochs = {self.epochs} "
                "are both set; give one (null removes the other)"
            )
        return self

    @model_validator(mode="after")
    def _needs_no_second_end(self) -> ScheduleConfig:
        if self.cooldown_steps and self.kind in ("cosine", "linear"):
            raise ValueError(
                f"schedule.cooldown_steps = {self.cooldown_steps}, but schedule.kind = "
                f"{self.kind} ends at 0 by itself; use rsqrt or constant, or leave it out"
            )
        return self
