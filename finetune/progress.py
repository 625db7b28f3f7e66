"""Where a run stands among its learning rates and steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counters of a run; a candidate is one learning rate's training from the starting weights.

    Attributes:
        learning_rates: Peak learning rates, in the order in which they are tried.
        steps_each: Optimizer steps of each.
        candidate: Number of the one being trained; all are done when it equals their count.
        step: Steps made with it.
        validation: Score on the validation part of each finished candidate (top-1, or mean average
            precision); None for one that diverged.
        chosen: The best candidate so far.
        seconds: Time spent training and validating, over all starts of the run.
        resumed_from_steps: `total_step` of every checkpoint the run went on from.
        broken: Unreadable training images, by index row.
        validation_broken: Validation images that the last evaluation left out as unreadable.
    """

    learning_rates: tuple[float, ...]
    steps_each: int
    candidate: int = 0
    step: int = 0
    validation: list[float | None] = field(default_factory=list)
    chosen: int | None = None
    seconds: float = 0.0
    resumed_from_steps: list[int] = field(default_factory=list)
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)
    validation_broken: int = 0

    @property
    def is_done(self) -> bool:
        """Whether every learning rate has been tried."""
        return self.candidate == len(self.learning_rates)

    @property
    def peak(self) -> float:
        """The learning rate being tried."""
        return self.learning_rates[self.candidate]

    @property
    def total_step(self) -> int:
        """Steps over all candidates: the step of metrics and checkpoints."""
        return self.candidate * self.steps_each + self.step

    @property
    def total_steps(self) -> int:
        """`total_step` at the end of the run."""
        return len(self.learning_rates) * self.steps_each

    def finish_candidate(self, score: float | None) -> bool:
        """Record a candidate's validation result and stand before the next one.

        Returns:
            Whether it is the best so far; of equals, the first one stays.
        """
        best = -1.0 if self.chosen is None else self.validation[self.chosen]
        is_best = score is not None and (best is None or score > best)
        if is_best:
            self.chosen = self.candidate
        self.validation.append(score)
        self.candidate += 1
        self.step = 0
        return is_best

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Undo `to_json`."""
        return cls(**{**values, "learning_rates": tuple(values["learning_rates"])})
