"""How fast training goes: images per second, share of time spent waiting for data, MFU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A backward pass costs about twice the forward pass: two products where the forward has one.
_TRAINING_OVER_FORWARD = 3.0


class ThroughputMeter:
    """Counts between two readings; every rank's meter sees the same steps.

    Args:
        images_per_step: Global batch.
        flops_per_image: FLOPs of one forward pass of one image (`models.flops`).
        peak_flops: Peak FLOP/s of one device; None leaves MFU out.
        world_size: Number of devices.
        clock: Seconds, monotonic; for tests.
    """

    def __init__(
        self,
        images_per_step: int,
        flops_per_image: float,
        peak_flops: float | None,
        world_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """See the class."""
        self._images_per_step = images_per_step
        self._flops_per_image = flops_per_image
        self._peak_flops = peak_flops
        self._world_size = world_size
        self._clock = clock
        self._restart()

    def record_wait(self, seconds: float) -> None:
        """Add time in which this rank waited for its next batch."""
        self._waited += seconds

    def step_done(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of the block out: evaluating and saving are not training."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - started

    def read_and_reset(self) -> dict[str, float]:
        """Rates since the last reading; empty if no step was made.

        Returns:
            "images_per_second" over all ranks, "data_wait_fraction" (0 to 1, this rank's) and, with
            a peak given, "mfu": the share of the peak that forward and backward passes used.
        """
        seconds = self._clock() - self._started - self._paused
        steps, waited = self._steps, self._waited
        self._restart()
        if steps == 0 or seconds <= 0.0:
            return {}
        images_per_second = steps * self._images_per_step / seconds
        rates = {
            "images_per_second": images_per_second,
            "data_wait_fraction": min(1.0, waited / seconds),
        }
        if self._peak_flops:
            flops_per_second = _TRAINING_OVER_FORWARD * self._flops_per_image * images_per_second
            rates["mfu"] = flops_per_second / (self._world_size * self._peak_flops)
        return rates

    def _restart(self) -> None:
        self._started = self._clock()
        self._steps = 0
        self._waited = 0.0
        self._paused = 0.0
