"""Refusals that one process meets and all must obey: none may go on into a collective alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from configs.errors import RefusedInput

T = TypeVar("T")


def agreed(accelerator: Accelerator, work: Callable[[], T], *, main_first: bool = False) -> T:
    """Do `work` on every process; if any of them is refused, all raise that refusal.

    Args:
        accelerator: Knows the processes.
        work: What to do; it must not contain collectives.
        main_first: The others begin when the main process is done (and find what it has made).

    Raises:
        RefusedInput: `work` was refused on a process; the message of the first of them.
    """
    waits = main_first and not accelerator.is_main_process
    done = (None, None) if waits else _attempt(work)
    _obey(done[1])
    if main_first:
        done = _attempt(work) if waits else done
        _obey(done[1])
    result: T = done[0]  # type: ignore[assignment]
    return result


def _attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return work(), None
    except RefusedInput as refused:
        return None, str(refused)


def _obey(refusal: str | None) -> None:
    """A collective: share this process's refusal, raise the first there is."""
    for message in gather_object([refusal]):
        if message is not None:
            raise RefusedInput(message)
