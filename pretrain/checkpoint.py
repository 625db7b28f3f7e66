"""Saving the whole training state, and going on from it with any number of ranks and ZeRO stage.

In a checkpoint's folder: `state-00000.safetensors` (each rank's part of the fp32 master weights and
Adam's moments, named by parameter), `rank-00000.pt` (its random states) and `marker.json` (see
`training.checkpoint_store`), whose metadata holds everything else.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch

from data_pipeline.broken import BrokenRecord
from pretrain.agreement import on_main, together
from pretrain.export import weights_facts
from pretrain.plan import Plan
from pretrain.process import seed_ranks_apart
from pretrain.quarantine import share_broken_images
from pretrain.resume import check_same_run, run_identity
from pretrain.state import Training
from pretrain.state_files import SavedState, rank_file, state_file
from tracking.metric_names import SAVE_STALL_SECONDS, SAVE_WRITE_SECONDS
from training.checkpoint_store import Checkpoint, CheckpointStore
from training.phases import SAVING
from training.precision import Precision
from training.processes import capture_rng_state, restore_rng_state

logger = logging.getLogger(__name__)


def save_when_due(training: Training, *, is_due: bool, saves_written: int) -> None:
    """Begin a save if one is due, and complete the one in flight once it is written; a collective.

    Args:
        training: The run.
        is_due: Whether the present state is to be saved.
        saves_written: Saves that every rank has written (`pretrain.step_vote`).

    Raises:
        RefusedInput: More images are broken than are tolerated; the present state is not saved.
        TrainingStopped: A file could not be written; earlier checkpoints are as they were.
    """
    if is_due or training.saver.is_written(saves_written):
        finish_saving(training)
    if is_due:
        share_broken_images(training)
        rank_state = {
            "rng": capture_rng_state(),
            "losses": [loss.cpu() for loss in training.losses],
        }
        with training.aside(SAVING):
            training.saver.start(training.step, _metadata(training), rank_state)
        if not training.plan.config.checkpoint.in_background:
            finish_saving(training)


def finish_saving(training: Training) -> None:
    """Wait for the save in flight, if there is one, and make it a checkpoint; a collective.

    Raises:
        TrainingStopped: A file could not be written; earlier checkpoints are as they were.
    """
    if not training.saver.is_saving:
        return
    with training.aside(SAVING):
        step, times = training.saver.finish()
    training.beat()
    # At the save's own step, as two saves can end in one step, the last one.
    training.tracked.log_metrics(
        step, {SAVE_STALL_SECONDS: times.stall, SAVE_WRITE_SECONDS: times.write}
    )
    logger.info(
        "saved %s (training stood still for %.2f s of it)",
        training.store.final_folder(step),
        times.stall,
    )


def find_checkpoint(store: CheckpointStore, plan: Plan, precision: Precision) -> Checkpoint | None:
    """The newest complete checkpoint, if the run folder has one; a collective.

    Raises:
        RefusedInput: It belongs to a run with other settings.
    """
    found: Checkpoint | None = on_main(store.newest_complete)
    if found is not None:
        check_same_run(found.metadata, plan, found.folder, precision)
    return found


def load_checkpoint(training: Training, found: Checkpoint) -> None:
    """Go on from a checkpoint; a collective.

    Raises:
        TrainingStopped: A rank could not load its part.
    """
    restore(training, found)
    metadata = found.metadata
    training.seconds_before = metadata["seconds"]
    # status.json also knows of processes that were killed before they saved anything.
    before = training.folder.status().get("resumed_from_steps", metadata["resumed_from_steps"])
    training.resumed_from_steps = [*before, metadata["step"]]
    records = [BrokenRecord(**fields) for fields in metadata["broken"]]
    training.broken = {record.row: record for record in records}
    logger.info("going on from %s", found.folder)
    saved_by, ranks = metadata["world_size"], training.plan.ranks.world_size
    if saved_by != ranks:
        logger.info("saved by %d ranks, going on with %d: the same images a step", saved_by, ranks)


def restore(training: Training, found: Checkpoint) -> None:
    """Put weights, optimizer, random states, step and position back; a collective.

    Raises:
        TrainingStopped: A rank could not load its part.
    """

    def load_own_part() -> None:
        updates = found.metadata["updates"]
        training.tensors.read_own_part(_saved_state(found), updates)
        _load_rank_state(training, found)

    together(f"loading {found.folder}", load_own_part)
    training.tensors.publish()
    training.step = found.metadata["step"]
    training.position = found.metadata["position"]
    training.validation = found.metadata["validation"]
    training.evaluation_pending = found.metadata.get("evaluation_pending", False)
    training.health.take_over(found.metadata["health"])
    training.loss_scale.take_over(found.metadata.get("loss_scale"))


def _load_rank_state(training: Training, found: Checkpoint) -> None:
    """Random states and the losses since the last log line; other ranks than saved start anew."""
    ranks, saved_ranks = training.plan.ranks, found.metadata["world_size"]
    files = range(saved_ranks) if saved_ranks != ranks.world_size else [ranks.rank]
    states = [
        torch.load(found.folder / rank_file(rank), map_location="cpu", weights_only=True)
        for rank in files
    ]
    # Losses are averaged over ranks when they are logged: their mean serves any number of ranks.
    losses = [torch.stack(step).mean() for step in zip(*(s["losses"] for s in states), strict=True)]
    training.losses = [loss.to(training.device) for loss in losses]
    if saved_ranks == ranks.world_size:
        restore_rng_state(states[0]["rng"])
    else:
        seed_ranks_apart(training.plan.config.seed, found.step, ranks.rank)


def _saved_state(found: Checkpoint) -> SavedState:
    return SavedState(
        found.folder / state_file(rank) for rank in range(found.metadata["world_size"])
    )


def _metadata(training: Training) -> dict[str, Any]:
    """What the ranks share, as JSON."""
    facts = weights_facts(training)  # so that weights can be exported without the data
    return {
        "identity": run_identity(training.plan, training.precision),
        "world_size": training.plan.ranks.world_size,
        "zero_stage": training.plan.config.zero.stage,
        "step": training.step,
        "position": training.position,
        "images_seen": training.position,
        "seconds": training.seconds(),
        "resumed_from_steps": training.resumed_from_steps,
        "validation": training.validation,
        "evaluation_pending": training.evaluation_pending,
        "health": training.health.to_json(),
        "loss_scale": training.loss_scale.to_json(),
        "weights_card": {**facts, "architecture": asdict(facts["architecture"])},
        "broken": [asdict(record) for record in training.broken.values()],
        "mlflow_run_id": training.tracked.run_id,
    }
