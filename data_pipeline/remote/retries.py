"""Repeats a transfer, with growing and jittered pauses, until it works or its budget is spent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import tenacity

from data_pipeline.remote.faults import ShardUnavailable, ShardWrong, TransferFault

# A missing file or a refused key is tried this often: replicas lag and tokens get renewed, but
# nobody should wait minutes to hear of a typing error.
FIRM_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0

# A transfer that is repeated for longer is told, every so often: people look at a silent terminal.
_TOLD_AFTER_SECONDS = 5.0
_TOLD_EVERY_SECONDS = 60.0

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass
class RetryPolicy:
    """How long transfers are repeated.

    Attributes:
        retry_seconds: time without progress after which a transfer is given up.
        closing: set when the loader closes, which ends every pause.
        on_retry: called before every repeat.
        option: what sets `retry_seconds`, for messages; "" if nothing does.
    """

    retry_seconds: float
    closing: threading.Event = field(default_factory=threading.Event)
    on_retry: Callable[[], None] = lambda: None
    option: str = "data.retry_seconds"
    _told_at: float = -_TOLD_EVERY_SECONDS

    def run(self, attempt: Callable[[], Result], what: str) -> Result:
        """The result of the first attempt that raises no `TransferFault`.

        Args:
            attempt: one attempt.
            what: the file, for messages, without secrets.

        Raises:
            ShardUnavailable: The time or the attempts ran out; says what, how often and why.
            ShardWrong: The file is missing, or not the one that was expected.
        """
        started = time.monotonic()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransferFault),
            wait=_pause,
            stop=lambda state: self._is_enough(state, started),
            sleep=tenacity.sleep_using_event(self.closing),
            before_sleep=lambda state: self._again(state, what, started),
        )
        try:
            return retrying(attempt)
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise self._given_up(what, last, time.monotonic() - started) from last.exception()

    def _again(self, state: tenacity.RetryCallState, what: str, started: float) -> None:
        self.on_retry()
        now = time.monotonic()
        is_long = now + state.upcoming_sleep - started >= _TOLD_AFTER_SECONDS
        if is_long and now - self._told_at >= _TOLD_EVERY_SECONDS:
            self._told_at = now
            logger.warning(
                "%s cannot be read (%s); trying for up to %.0f s",
                what,
                _fault(state),
                self.retry_seconds,
            )

    def _is_enough(self, state: tenacity.RetryCallState, started: float) -> bool:
        fault = _fault(state)
        if self.closing.is_set() or (fault.is_firm and state.attempt_number >= FIRM_ATTEMPTS):
            return True
        return time.monotonic() + state.upcoming_sleep - started > self.retry_seconds

    def _given_up(self, what: str, last: tenacity.Future, seconds: float) -> ShardUnavailable:
        fault = last.exception()
        assert isinstance(fault, TransferFault)
        kind = ShardWrong if fault.is_wrong_file else ShardUnavailable
        asked = fault.retry_after_seconds
        wish = f" (it asked to come back in {asked:.0f} s)" if asked else ""
        budget = f" ({self.option} = {self.retry_seconds:g})" if self.option else ""
        return kind(
            f"{what} cannot be read: gave up after {last.attempt_number} attempts in "
            f"{seconds:.1f} s{budget}; last cause: {fault}{wish}"
        )


def _fault(state: tenacity.RetryCallState) -> TransferFault:
    assert state.outcome is not None
    fault = state.outcome.exception()
    assert isinstance(fault, TransferFault)
    return fault


# Full jitter: ranks that failed together must not come back together.
_jittered = tenacity.wait_random_exponential(
    multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS
)


def _pause(state: tenacity.RetryCallState) -> float:
    asked = _fault(state).retry_after_seconds
    return _jittered(state) if asked is None else asked + _jittered(state) / 10
