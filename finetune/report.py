"""What the console and the metrics journal are told while a run trains."""

from __future__ import annotations

from finetune.quarantine import share_broken_images
from finetune.scores import Scores, metrics_of
from finetune.state import TransferState
from finetune.step import StepOutcome
from tracking import metric_names as names
from tracking.run import TrackedRun
from tracking.system import system_metrics
from training.console import ProgressLine


class Reporter:
    """Lines on the console and rows for MLflow; steps are counted over all learning rates.

    Every process calls every method: some of what is reported is gathered from all.
    """

    def __init__(self, state: TransferState, tracked: TrackedRun) -> None:
        """Begin at the step where the run stands."""
        self.tracked = tracked
        self._line = ProgressLine(state.progress.total_steps, state.progress.total_step)

    def step(self, state: TransferState, outcome: StepOutcome) -> None:
        """Report the step that was just made; a collective."""
        share_broken_images(state)
        progress, loader = state.progress, state.loader
        metrics = {
            names.TRAIN_LOSS: float(state.accelerator.reduce(outcome.loss, "mean")),
            names.TRAIN_LR: outcome.learning_rate,
            names.TRAIN_GRAD_NORM: outcome.grad_norm,
            names.TRAIN_EPOCH: loader.position / loader.dataset.num_images,
            names.TRAIN_IMAGES_SEEN: float(loader.position),
            names.TRAIN_BROKEN_IMAGES: float(len(progress.broken)),
            **{f"throughput/{k}": v for k, v in state.meter.read_and_reset().items()},
            **system_metrics(),
        }
        self.tracked.log_metrics(progress.total_step, metrics)
        self._line.log(progress.total_step, metrics)

    def validation(self, state: TransferState, scores: Scores) -> None:
        """Report scores on the validation part."""
        metrics = metrics_of("validation", scores)
        self.tracked.log_metrics(state.progress.total_step, metrics)
        self._line.log(state.progress.total_step, metrics)

    def close(self) -> None:
        """Take the progress bar away."""
        self._line.close()
