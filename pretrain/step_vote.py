"""All ranks agree at a step boundary what comes next, without waiting for each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist


class Verdict(NamedTuple):
    """What the ranks said at the previous step, together; the same on all of them.

    Attributes:
        stop: Any rank wished to stop.
        saves_written: Saves whose files every rank had written.
    """

    stop: bool
    saves_written: int


class StepVote:
    """A vote per step; its outcome is read one step later, when it has long arrived.

    Ranks are signalled one after the other, or only some of them, so each puts in its own wish
    and all see the same outcome at the same step. Reading a vote in the step that started it would
    make every step wait for the slowest rank's message, and a GPU for its host.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        """Start with no vote open."""
        self._is_alone = world_size == 1
        self._said = torch.zeros(2, dtype=torch.int32, device=device)
        self._outcome = torch.zeros(2, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._vote: dist.Work | None = None
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None

    def cast(self, wants_stop: bool, saves_written: int) -> Verdict:
        """Put in this rank's wish and how many saves it has written; once per step on every rank.

        Returns:
            The outcome of the previous step's vote; alone, of this one.
        """
        if self._is_alone:
            return Verdict(wants_stop, saves_written)
        outcome = self._read()
        # One maximum answers both: the largest of the negated counts belongs to the slowest rank.
        self._said[0] = int(wants_stop)
        self._said[1] = -saves_written
        self._vote = dist.all_reduce(self._said, op=dist.ReduceOp.MAX, async_op=True)
        if self._arrived is not None:
            self._vote.wait()  # on a GPU this orders streams; the host goes on
            self._outcome.copy_(self._said, non_blocking=True)
            self._arrived.record()
        return outcome

    def _read(self) -> Verdict:
        if self._vote is None:
            return Verdict(False, 0)
        if self._arrived is not None:
            self._arrived.synchronize()
            stop, negated = self._outcome.tolist()
        else:
            self._vote.wait()
            stop, negated = self._said.tolist()
        return Verdict(bool(stop), -negated)
