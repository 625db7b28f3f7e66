"""What a person at the terminal sees: one line per logging interval, a bar, no noise.

Rank 0 writes to standard output and to the run folder's train.log; the other ranks speak only of
errors, on standard error.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

TOLD_AT_EXIT = {"is_told_at_exit": True}
"""`extra` of a record for train.log alone: `run_command` tells the user, once for all ranks."""

OUR_PACKAGES = (
    "configs",
    "data_pipeline",
    "finetune",
    "launch",
    "models",
    "pretrain",
    "tracking",
    "training",
)

# Each was seen in every run of the libraries as shipped, and asks nothing of the user.
_NOISE = re.compile(
    "No CUDA runtime is found|No ROCm runtime is found|Unable to find hostfile"
    "|Setting accelerator to CPU|op built successfully|_all_gather_base|_reduce_scatter_base"
    "|all_gather_into_tensor|reduce_scatter_tensor"
)
_NOISY_LOGGERS = ("DeepSpeed", "torch.utils.cpp_extension", "torch.distributed")


class _QuietLibrary(logging.Filter):
    """Drops known noise, and what is below `level`; a filter stays when a library sets up late."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level and not _NOISE.search(record.getMessage())


class _BarSafeHandler(logging.Handler):
    """Writes lines above a progress bar, if there is one, instead of through it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "is_told_at_exit", False):
            return
        try:
            tqdm.write(self.format(record), file=self._stream)
            self._stream.flush()
        except Exception:
            self.handleError(record)


class _Sentence(logging.Formatter):
    """`12:03:59 message`; anything above INFO says its level."""

    def __init__(self, time_format: str) -> None:
        super().__init__("%(asctime)s %(message)s", time_format)

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno > logging.INFO:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)


def setup_logging(run_folder: Path | None, is_main: bool) -> None:
    """Send this process's log lines where they belong; calling it again replaces the first call.

    Args:
        run_folder: Where train.log is kept (appended to); None keeps none.
        is_main: Whether this process talks to the user.
    """
    level = logging.WARNING if is_main else logging.ERROR
    handlers: list[logging.Handler] = [_BarSafeHandler(sys.stdout if is_main else sys.stderr)]
    handlers[0].setFormatter(_Sentence("%H:%M:%S"))
    if is_main and run_folder is not None:
        handlers.append(logging.FileHandler(run_folder / "train.log", encoding="utf-8"))
        handlers[1].setFormatter(_Sentence("%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for package in OUR_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO if is_main else logging.ERROR)
    for name in _NOISY_LOGGERS:
        library = logging.getLogger(name)
        for quiet in [f for f in library.filters if isinstance(f, _QuietLibrary)]:
            library.removeFilter(quiet)
        library.addFilter(_QuietLibrary(level))
    _quiet_warnings(is_main)


def _quiet_warnings(is_main: bool) -> None:
    if is_main:
        warnings.filterwarnings("ignore", message=f".*({_NOISE.pattern})")
    else:
        warnings.simplefilter("ignore")


class ProgressLine:
    """Progress of a run on the console: `log` writes a line, `advance` moves the bar.

    The bar is there only when standard output is a terminal.

    Args:
        total_steps: Steps of the whole run.
        start_step: Steps already made when this process began (a resumed run).
        clock: Seconds, monotonic; for tests.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See the class."""
        self._total_steps = total_steps
        self._start_step = start_step
        self._clock = clock
        self._started = clock()
        self._bar: tqdm | None = None
        if sys.stdout.isatty() and logger.isEnabledFor(logging.INFO):
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )

    def advance(self, step: int) -> None:
        """Move the bar to this number of steps made."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line.

        Args:
            step: Steps made so far.
            metrics: By name, with a group before a slash ("train/loss" is shown as loss, and
                "validation/loss" as loss in a line that says it is of validation). Shown is what
                `_COLUMNS` knows.
        """
        shown = {name.rsplit("/", 1)[-1]: value for name, value in metrics.items()}
        width = len(str(self._total_steps))
        parts = [f"step {step:>{width}}/{self._total_steps}"]
        parts += sorted({name.split("/", 1)[0] for name in metrics} & _NAMED_GROUPS)
        texts = [write(shown[name]) for name, write in _COLUMNS.items() if name in shown]
        parts += [text for text in texts if text]
        left = self._seconds_left(step)
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        logger.info("%s", " | ".join(parts))
        self.advance(step)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _seconds_left(self, step: int) -> float | None:
        made = step - self._start_step
        if made <= 0 or step >= self._total_steps:
            return None
        return (self._clock() - self._started) / made * (self._total_steps - step)


_COLUMNS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "top1": lambda value: f"top-1 {value:.2%}",
    "top5": lambda value: f"top-5 {value:.2%}",
    "mean_per_class": lambda value: f"mean per class {value:.2%}",
    "real_top1": lambda value: f"ReaL top-1 {value:.2%}",
    "mean_average_precision": lambda value: f"mean average precision {value:.2%}",
    "broken_images": lambda value: f"{value:.0f} broken" if value else "",
    "lr": lambda value: f"lr {value:.2e}",
    "grad_norm": lambda value: f"grad norm {value:.3g}",
    "images_per_second": lambda value: f"{value:,.0f} images/s",
    "data_wait_fraction": lambda value: f"data wait {value:.1%}",
    "mfu": lambda value: f"MFU {value:.1%}",
    "memory_gib": lambda value: f"memory {value:.1f} GiB",
    "gpu_memory_peak_gib": lambda value: f"GPU memory {value:.1f} GiB",
}
_NAMED_GROUPS = {"validation", "validation_ema", "test"}


def format_duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 3m20s, 2h05m, 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
