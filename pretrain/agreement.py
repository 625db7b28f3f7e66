"""Ranks succeed or fail together: none goes on alone, none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from configs.errors import RefusedInput
from pretrain.failures import TrainingStopped

T = TypeVar("T")


def on_main(work: Callable[[], T], what: str | None = None) -> T:
    """Let rank 0 do some work and give its result to every rank; a collective.

    A failure of rank 0 is raised on every rank.

    Args:
        work: Gives something that pickles.
        what: The work in words, for the message ("saving the checkpoint of step 8").

    Raises:
        RefusedInput: Rank 0 raised it.
        TrainingStopped: Rank 0 failed otherwise.
    """
    outcome: list[T | None] = [None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            failure = error
    answer: list[tuple[str | None, bool, T | None]] = [
        (_said(failure), isinstance(failure, RefusedInput), outcome[0])
    ]
    dist.broadcast_object_list(answer, src=0)
    message, is_refusal, result = answer[0]
    if message is None:
        return result  # type: ignore[return-value]
    if is_refusal:
        raise RefusedInput(message) from failure
    raise TrainingStopped(f"{what} failed on rank 0: {message}" if what else message) from failure


def together(what: str, work: Callable[[], T]) -> T:
    """Do some work on every rank; if it fails on any, every rank raises; a collective.

    Args:
        what: The work in words, for the message ("loading the checkpoint runs/...").
        work: Must not hold a collective that a failing rank would leave the others waiting in.

    Raises:
        TrainingStopped: Naming the ranks that failed and why.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, _said(failure))
    failed = [f"rank {rank}: {message}" for rank, message in enumerate(messages) if message]
    if failed:
        raise TrainingStopped(f"{what} failed on {'; '.join(failed)}") from failure
    return result  # type: ignore[return-value]


def _said(failure: Exception | None) -> str | None:
    if failure is None:
        return None
    if isinstance(failure, RefusedInput | TrainingStopped):  # a sentence already
        return str(failure)
    return f"{type(failure).__name__}: {failure}"
