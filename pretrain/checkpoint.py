"""Saving and loading the whole training state, so that a resumed run ends with the same weights.

In a checkpoint's folder: `deepspeed/` (weights and optimizer state, a file per rank),
`rank-00000.pt` (random states of each rank) and `marker.json` (see `training.checkpoint_store`),
whose metadata holds everything else.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.broken import BrokenRecord
from pretrain.agreement import on_main, together
from pretrain.failures import TrainingStopped
from pretrain.resume import check_same_run, run_identity
from pretrain.state import Training
from training.checkpoint_store import Checkpoint
from training.processes import capture_rng_state, restore_rng_state

logger = logging.getLogger(__name__)

_TAG = "deepspeed"


def save_checkpoint(training: Training) -> None:
    """Save the state after `training.step` updates; a collective.

    Raises:
        TrainingStopped: A file could not be written; earlier checkpoints are as they were.
    """
    step, store, rank = training.step, training.store, training.plan.ranks.rank
    on_main(lambda: store.begin(step))
    temporary = store.temporary_folder(step)
    try:
        # save_latest writes before the other ranks have ended; the store has its own.
        training.engine.save_checkpoint(str(temporary), tag=_TAG, save_latest=False)
    except (OSError, RuntimeError) as error:
        # The others wait inside DeepSpeed's barrier, and end when this process does.
        raise TrainingStopped(
            f"rank {rank} could not save the checkpoint of step {step}: {error}; "
            "earlier checkpoints are as they were"
        ) from error

    def write_own_state() -> list[str]:
        torch.save(_rank_state(training), temporary / _rank_file(rank))
        own = [_rank_file(rank)]
        for path in (temporary / _TAG).iterdir():
            if f"_pp_rank_{rank}_" in path.name:
                own.append(f"{_TAG}/{path.name}")
        return own

    own_files = together(f"saving the checkpoint of step {step}", write_own_state)
    files: list[list[str]] = [[]] * training.plan.ranks.world_size
    dist.all_gather_object(files, own_files)
    expected = [name for names in files for name in names]
    metadata = _metadata(training)
    on_main(lambda: store.complete(temporary, step, metadata, expected_files=expected).step)
    logger.info("saved %s", store.final_folder(step))


def load_newest_checkpoint(training: Training) -> None:
    """Go on from the newest complete checkpoint, if there is one; a collective.

    Raises:
        RefusedInput: It belongs to a run with other settings.
        TrainingStopped: A rank could not load its part.
    """
    found: Checkpoint | None = on_main(training.store.newest_complete)
    if found is None:
        return
    check_same_run(found.metadata, training.plan, found.folder, training.precision)
    together(f"loading {found.folder}", lambda: _load(training, found))
    logger.info("going on from %s", found.folder)


def _load(training: Training, found: Checkpoint) -> None:
    path, _ = training.engine.load_checkpoint(str(found.folder), tag=_TAG)
    if path is None:
        raise RuntimeError(f"DeepSpeed found nothing to load in {found.folder}")
    _check_weight_decay(training)
    rank_file = found.folder / _rank_file(training.plan.ranks.rank)
    state = torch.load(rank_file, map_location="cpu", weights_only=True)
    restore_rng_state(state["rng"])
    training.losses = [loss.to(training.device) for loss in state["losses"]]
    metadata = found.metadata
    training.step = metadata["step"]
    training.position = metadata["position"]
    training.validation = metadata["validation"]
    training.seconds_before = metadata["seconds"]
    # status.json also knows of processes that were killed before they saved anything.
    before = training.folder.status().get("resumed_from_steps", metadata["resumed_from_steps"])
    training.resumed_from_steps = [*before, metadata["step"]]
    records = [BrokenRecord(**fields) for fields in metadata["broken"]]
    training.broken = {record.row: record for record in records}


def _check_weight_decay(training: Training) -> None:
    # DeepSpeed has loaded group 0's settings into every group before, without a word.
    loaded = [group["weight_decay"] for group in training.engine.optimizer.param_groups]
    if loaded != [training.plan.config.optim.weight_decay, 0.0]:
        raise RuntimeError(f"weight decay of the parameter groups is {loaded} after loading")


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _rank_state(training: Training) -> dict[str, Any]:
    """What differs between ranks beside DeepSpeed's part: tensors and plain values only."""
    return {"rng": capture_rng_state(), "losses": [loss.cpu() for loss in training.losses]}


def _metadata(training: Training) -> dict[str, Any]:
    """What the ranks share, as JSON."""
    return {
        "identity": run_identity(training.plan, training.precision),
        "step": training.step,
        "position": training.position,
        "images_seen": training.position,
        "seconds": training.seconds(),
        "resumed_from_steps": training.resumed_from_steps,
        "validation": training.validation,
        "broken": [asdict(record) for record in training.broken.values()],
        "mlflow_run_id": training.tracked.run_id,
    }
