"""Where the time of a training loop goes: one phase after the other, on the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

DATA, AUGMENTATION = "data", "augmentation"
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
LOGGING, EVALUATION, SAVING = "logging", "evaluation", "saving"
OTHER = "other"
# Events of so many phases wait to be read; past that, those that the GPU has reached are read
# without waiting for it, so that a long interval between two log lines keeps no long list.
_MANY = 1024


class PhaseTimer:
    """Shares of the time between two readings that each phase took; they add up to 1.

    A phase lasts until the next one begins. On a GPU the phases are parted by CUDA events: the host
    queues work far ahead, and its clock would tell when that was queued. An event is read only at
    `read_and_reset`; nothing makes host or device wait before. So "data" is the time in which the
    GPU had nothing to do because its next batch was not there, and not the time in which the host
    waited for a batch while the GPU was still busy with the one before.

    Args:
        device: Where the work is done.
        clock: Seconds, monotonic; for tests.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start with the phase "other"."""
        self._is_cuda = device.type == "cuda"
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._free: list[torch.cuda.Event] = []
        self._marks: list[tuple[str, torch.cuda.Event]] = []
        self._phase = OTHER
        self._since = clock()
        if self._is_cuda:
            self.begin(OTHER)

    @property
    def phase(self) -> str:
        """The one that is running."""
        return self._phase

    def begin(self, phase: str) -> None:
        """End the phase that is running and begin the next; costs about a microsecond."""
        if self._is_cuda:
            self._marks.append((phase, self._event_now()))
            if len(self._marks) > _MANY:
                self._read_those_reached()
        else:
            self._count(self._clock())
        self._phase = phase

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Let the block be a phase, and go on with the one before it."""
        before = self._phase
        self.begin(phase)
        try:
            yield
        finally:
            self.begin(before)

    def read_and_reset(self) -> dict[str, float]:
        """Share (0 to 1) of each phase since the last reading; empty if no time has passed.

        On a GPU this waits until it has reached this moment.
        """
        self.begin(self._phase)
        if self._is_cuda:
            self._marks[-1][1].synchronize()
            self._read_those_reached()
        seconds, self._seconds = self._seconds, {}
        total = sum(seconds.values())
        return {phase: value / total for phase, value in seconds.items()} if total > 0.0 else {}

    def _count(self, now: float) -> None:
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now

    def _event_now(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read_those_reached(self) -> None:
        """Add up the phases whose end the GPU has passed; the last mark stays, as a beginning."""
        read = 0
        while read + 1 < len(self._marks) and self._marks[read + 1][1].query():
            phase, event = self._marks[read]
            seconds = event.elapsed_time(self._marks[read + 1][1]) / 1000
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
            self._free.append(event)
            read += 1
        del self._marks[:read]
