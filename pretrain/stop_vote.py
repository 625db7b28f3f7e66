"""All ranks agree at a step boundary whether to stop, without waiting for each other."""

from __future__ import annotations

import torch
import torch.distributed as dist


class StopVote:
    """A vote per step; its outcome is read one step later, when it has long arrived.

    Ranks are signalled one after the other, or only some of them, so each puts in its own wish
    and all see the same outcome at the same step. Reading a vote in the step that started it would
    make every step wait for the slowest rank's message, and a GPU for its host.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        """Start with no vote open."""
        self._is_alone = world_size == 1
        self._wishes = torch.zeros(1, dtype=torch.int32, device=device)
        self._outcome = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._vote: dist.Work | None = None
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None

    def cast(self, wants_stop: bool) -> bool:
        """Put in this rank's wish; every rank calls it once per step.

        Returns:
            Whether any rank wished to stop at the previous step: the same on all ranks.
        """
        if self._is_alone:
            return wants_stop
        outcome = self._read()
        self._wishes.fill_(int(wants_stop))
        self._vote = dist.all_reduce(self._wishes, op=dist.ReduceOp.MAX, async_op=True)
        if self._arrived is not None:
            self._vote.wait()  # on a GPU this orders streams; the host goes on
            self._outcome.copy_(self._wishes, non_blocking=True)
            self._arrived.record()
        return outcome

    def _read(self) -> bool:
        if self._vote is None:
            return False
        if self._arrived is not None:
            self._arrived.synchronize()
            return bool(self._outcome.item())
        self._vote.wait()
        return bool(self._wishes.item())
