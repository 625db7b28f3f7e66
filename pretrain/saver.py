"""Writing checkpoints while training goes on.

A save copies the state to host memory, which is all that training waits for; a thread writes the
copy. Once every rank has written, the marker makes a checkpoint of it, at a step boundary. At most
one save is in flight.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pretrain.agreement import on_main, together
from pretrain.state_files import rank_file, state_file, write_state
from pretrain.training_tensors import TrainingTensors
from training.checkpoint_marker import FileFacts, flushed
from training.checkpoint_store import CheckpointStore

logger = logging.getLogger(__name__)


@dataclass
class SaveTimes:
    """Seconds of one save on this rank: training stood still, and files were being written."""

    stall: float
    write: float


@dataclass
class _InFlight:
    step: int
    metadata: dict[str, Any]
    written: Future[tuple[dict[str, FileFacts], float]]
    stall: float


class Saver:
    """This rank's side of the saves of a run."""

    def __init__(
        self, store: CheckpointStore, state: TrainingTensors, rank: int, world_size: int
    ) -> None:
        """Start with nothing in flight.

        Args:
            store: The run's checkpoints.
            state: What is saved.
            rank: This rank.
            world_size: Number of ranks.
        """
        self._state = state
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._begun = 0
        self._in_flight: _InFlight | None = None
        self._host: dict[str, torch.Tensor] = {}  # reused: pinned memory is slow to get
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")

    @property
    def is_saving(self) -> bool:
        """Whether a save is not yet a checkpoint; the same on all ranks."""
        return self._in_flight is not None

    @property
    def written(self) -> int:
        """Saves whose files this rank has written, or failed to write."""
        in_flight = self._in_flight
        return self._begun - int(in_flight is not None and not in_flight.written.done())

    def is_written(self, written_everywhere: int) -> bool:
        """Whether the save in flight only lacks its marker, by the least `written` of all ranks."""
        return self.is_saving and written_everywhere == self._begun

    def start(self, step: int, metadata: dict[str, Any], rank_state: Mapping[str, Any]) -> None:
        """Copy the state and begin to write it; a collective, with none in flight.

        Args:
            step: Updates made.
            metadata: What the ranks share, for the marker (rank 0's counts).
            rank_state: What differs between ranks, for `torch.save`.

        Raises:
            TrainingStopped: The folder could not be made; earlier checkpoints are as they were.
        """
        assert self._in_flight is None, "one save at a time"
        began = time.monotonic()
        store, temporary = self._store, self._store.temporary_folder(step)
        on_main(lambda: store.begin(step).name, _saving(step))
        tensors, starts = self._copy_to_host()
        metadata = {**metadata, "updates": self._state.updates_made()}

        def write() -> tuple[dict[str, FileFacts], float]:
            start = time.monotonic()
            # Not into the file by torch itself, which hides the reason if the disk is full.
            content = io.BytesIO()
            torch.save(rank_state, content)
            (temporary / rank_file(self._rank)).write_bytes(content.getbuffer())
            write_state(temporary / state_file(self._rank), tensors, starts)
            names = (rank_file(self._rank), state_file(self._rank))
            return {name: flushed(temporary / name) for name in names}, time.monotonic() - start

        self._begun += 1
        stall = time.monotonic() - began
        self._in_flight = _InFlight(step, metadata, self._writer.submit(write), stall)

    def finish(self) -> tuple[int, SaveTimes]:
        """Wait until every rank has written and make it a checkpoint; a collective.

        Returns:
            Its step, and what it took.

        Raises:
            TrainingStopped: A rank could not write; earlier checkpoints are as they were.
        """
        assert self._in_flight is not None, "nothing is being saved"
        began = time.monotonic()
        saving, self._in_flight = self._in_flight, None
        files, write_seconds = together(_saving(saving.step), saving.written.result)
        everywhere: list[dict[str, FileFacts]] = [{}] * self._world_size
        dist.all_gather_object(everywhere, files)
        facts = {name: fact for own in everywhere for name, fact in own.items()}
        store, step = self._store, saving.step
        temporary = store.temporary_folder(step)
        on_main(
            lambda: store.complete(temporary, step, saving.metadata, facts=facts).step,
            _saving(step),
        )
        return step, SaveTimes(saving.stall + time.monotonic() - began, write_seconds)

    def _copy_to_host(self) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        """Copies of this rank's tensors by "kind/parameter", and where in it each starts."""
        copies, starts = {}, {}
        for fragment in self._state.own_fragments(self._rank, self._world_size):
            for kind, tensor in self._state.tensors_of(fragment).items():
                name = f"{kind}/{fragment.name}"
                if name not in self._host:
                    pinned = tensor.is_cuda
                    self._host[name] = torch.empty(tensor.shape, pin_memory=pinned)
                self._host[name].copy_(tensor, non_blocking=True)
                copies[name], starts[name] = self._host[name], fragment.start
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copies must end before the next update
        return copies, starts


def _saving(step: int) -> str:
    return f"saving the checkpoint of step {step}"
