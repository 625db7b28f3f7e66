"""Traces of a few steps by torch's profiler, into the run folder; the run itself is not changed."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from configs.profile_steps import profile_steps
from pretrain.plan import Plan
from training.profile_summary import summary_of

logger = logging.getLogger(__name__)


class StepProfiler:
    """Profiles the steps that `profile` names, on the ranks that `profile_ranks` names."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        """Start with nothing being profiled."""
        config, self._rank = plan.config, plan.ranks.rank
        wanted = config.profile is not None and self._rank in config.profile_ranks
        self._steps = profile_steps(config.profile) if config.profile and wanted else None
        self._folder = plan.run_dir / "profile"
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._running: torch.profiler.profile | None = None
        self._began_at = 0

    def is_due(self, step: int) -> bool:
        """Whether a trace begins or ends after so many updates."""
        return self._steps is not None and step in self._steps

    def reached(self, step: int) -> None:
        """Begin or end the trace; `step` is one of those that are due."""
        assert self._steps is not None, "only what is due is done"
        if self._running is not None:
            self.close(step)
        elif step == self._steps[0]:
            logger.info("profiling from step %d to step %d", *self._steps)
            self._began_at = step
            self._running = torch.profiler.profile(activities=self._activities)
            self._running.start()

    def close(self, step: int) -> None:
        """End the trace that is being made, if there is one, and write it; earlier than asked, too.

        A disk that is full costs the trace and a warning, never the run.
        """
        if self._running is None:
            return
        profile, self._running, self._steps = self._running, None, None
        profile.stop()
        if step == self._began_at:
            return
        name = f"steps-{self._began_at:08d}-{step:08d}-rank-{self._rank:05d}"
        started = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trace = self._folder / f"{name}.json.gz"
            profile.export_chrome_trace(str(trace))
            told = summary_of(profile, step - self._began_at)
            (self._folder / f"{name}.txt").write_text(told, encoding="utf-8")
        except OSError as error:
            logger.warning("the profile could not be written: %s", error)
            return
        self._tell(trace, time.monotonic() - started)

    def _tell(self, trace: Path, seconds: float) -> None:
        logger.info(
            "profile: %s (open it in https://ui.perfetto.dev; it took %.1f s to write)",
            trace,
            seconds,
        )
