"""What a run does when its numbers go wrong: leave an update out, or go back and around the data.

An update whose loss or gradient is not finite is skipped on all ranks. After too many in a row, or
where a logged loss jumps, the run goes back to the newest checkpoint from before and passes over
the positions it was at. After too many of these it stops. Everything here is decided from numbers
that all ranks share.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.health import HealthConfig
from pretrain.failures import TrainingStopped
from training.loss_spikes import SpikeDetector

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """Why a run is about to go back.

    Attributes:
        step: Updates made before the first of the offending batches.
        start: First global position of theirs.
        stop: First position after them.
        reason: In words.
    """

    step: int
    start: int
    stop: int
    reason: str


@dataclass
class Health:
    """The troubles of a run so far; saved with it.

    Attributes:
        config: What is tolerated.
        skipped: Updates left out.
        rewinds: Times the run went back, with what for.
        trouble: What makes the run go back at the end of this step.
    """

    config: HealthConfig
    skipped: int = 0
    rewinds: list[Trouble] = field(default_factory=list)
    trouble: Trouble | None = None
    _in_a_row: list[tuple[int, int, int]] = field(default_factory=list)
    _interval: tuple[int, int] | None = None
    _spikes: SpikeDetector = field(init=False)

    def __post_init__(self) -> None:
        """Start with no losses known."""
        self._spikes = SpikeDetector(self.config.spike_window)

    def passing_over(self, position: int) -> int:
        """Where to go on from `position`: there, or after the batches that made trouble."""
        for trouble in sorted(self.rewinds, key=lambda trouble: trouble.start):
            if trouble.start <= position < trouble.stop:
                position = trouble.stop
        return position

    def update_made(self, step: int, position: int) -> None:
        """Note that the update from the batch at `position`, after `step` updates, was good."""
        self._in_a_row.clear()
        if self._interval is None:
            self._interval = (step, position)

    def update_skipped(self, step: int, positions: tuple[int, int], reason: str) -> None:
        """Note that the batch with these positions (first, one past the last) changed nothing.

        Args:
            step: Steps made before it.
            positions: Of its images.
            reason: What was not finite, in a sentence.
        """
        self.skipped += 1
        self._in_a_row.append((step, *positions))
        if len(self._in_a_row) > self.config.max_skipped:
            first_step, first, _ = self._in_a_row[0]
            self.trouble = Trouble(first_step, first, positions[1], reason)
        else:
            logger.warning(
                "%s This update is left out (%d in a row, %d in all).",
                reason,
                len(self._in_a_row),
                self.skipped,
            )

    def gradient_overflowed(self, step: int, scale: float) -> None:
        """Note that fp16 had no room for a gradient; a lower loss scale makes it, so all is well.

        Args:
            step: Steps made before it.
            scale: The loss scale from now on.
        """
        self.skipped += 1
        logger.info(
            "step %d: a gradient overflowed fp16; this update is left out, the loss scale is %g",
            step,
            scale,
        )

    def loss_logged(self, loss: float, position: int) -> None:
        """Look at the mean loss of the steps since the last call, which ended before `position`."""
        interval, self._interval = self._interval, None
        if self.config.spike_score is None or interval is None:
            return
        score = self._spikes.score(loss)
        if score <= self.config.spike_score:
            self._spikes.remember(loss)
        else:
            step, start = interval
            self.trouble = Trouble(
                step,
                start,
                position,
                f"the mean loss of positions {start} to {position - 1} is {loss:.4g}, "
                f"{score:.0f} deviations above the {self.config.spike_window} logged before.",
            )

    def begin_rewind(self) -> Trouble:
        """Count the trouble as one the run goes back for.

        Raises:
            TrainingStopped: It went back too often already.
        """
        trouble, self.trouble = self.trouble, None
        assert trouble is not None, "going back needs a reason"
        self._in_a_row.clear()
        self._interval = None
        if len(self.rewinds) >= self.config.max_rewinds:
            before = "".join(
                f" Before that, from step {t.step}: {t.reason}" for t in reversed(self.rewinds)
            )
            raise TrainingStopped(
                f"{trouble.reason} The run has gone back {len(self.rewinds)} times, and "
                f"health.max_rewinds = {self.config.max_rewinds}.{before} Checkpoints from before "
                f"step {trouble.step} are good: lower optim.lr, set optim.clip_norm, or look at "
                "the images (docs/runbook.md)"
            )
        self.rewinds.append(trouble)
        return trouble

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "rewinds": [asdict(t) for t in self.rewinds]}

    def take_over(self, saved: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; troubles since then are not forgotten."""
        known = [Trouble(**fields) for fields in saved["rewinds"]]
        self.rewinds = known + [trouble for trouble in self.rewinds if trouble not in known]
        self.skipped = max(self.skipped, saved["skipped"])
