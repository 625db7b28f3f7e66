"""Saving a run and going on with it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from configs.errors import RefusedInput
from data_pipeline.broken import reset_quarantine
from finetune.candidates import put_weights
from finetune.options import identity, refuse_differences
from finetune.progress import Progress
from finetune.quarantine import known_broken, quarantine_file, share_broken_images
from finetune.state import TransferState, seed_dropout
from training.checkpoint_store import Checkpoint
from training.processes import capture_rng_state, restore_rng_state

logger = logging.getLogger(__name__)

_MODEL = "model.pt"
_OPTIMIZER = "optimizer.pt"
_CHOSEN = "chosen.pt"


def run_identity(state: TransferState) -> dict[str, Any]:
    """What a run keeps for life: options, starting weights, images and their order."""
    return {
        **identity(state.config),
        "precision": state.precision,
        "starting weights": state.start.sha256,
        **{f"training images {k}": v for k, v in state.loader.order.identity().items()},
        "validation images": state.data.validation.filter_digest,
        "test images": state.data.test.digest + state.data.test.filter_digest,
    }


def save_checkpoint(state: TransferState) -> None:
    """Save everything that the run needs to go on exactly; a collective.

    Raises:
        RefusedInput: More images are broken than are tolerated; nothing is saved.
    """
    share_broken_images(state)
    accelerator, step = state.accelerator, state.progress.total_step
    with state.meter.pause():
        if accelerator.is_main_process:
            state.store.begin(step)
        accelerator.wait_for_everyone()
        folder = state.store.temporary_folder(step)
        torch.save(capture_rng_state(), folder / _random_states(accelerator.process_index))
        if accelerator.is_main_process:
            _write_tensors(state, folder)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _complete(state, folder, step)
        accelerator.wait_for_everyone()


def _write_tensors(state: TransferState, folder: Path) -> None:
    torch.save(state.bare_model().state_dict(), folder / _MODEL)
    torch.save(state.optimizer.state_dict(), folder / _OPTIMIZER)
    if state.chosen is not None:
        torch.save(state.chosen, folder / _CHOSEN)


def _complete(state: TransferState, folder: Path, step: int) -> None:
    progress = {**state.progress.to_json(), "seconds": state.seconds()}
    ranks = state.accelerator.num_processes
    state.store.complete(
        folder,
        step,
        {"identity": run_identity(state), "progress": progress, "processes": ranks},
        expected_files=[_random_states(rank) for rank in range(ranks)],
    )
    state.folder.write_status("running", step)


def _random_states(rank: int) -> str:
    return f"random-states-{rank}.pt"


def resume(state: TransferState) -> None:
    """Go on from the newest complete checkpoint, if the run has one; a collective.

    Raises:
        RefusedInput: It is of a run with other options, weights or images; or of none, and
            `resume` is "must".
    """
    checkpoint = _newest_on_main(state)
    if checkpoint is None:
        if state.config.resume == "must":
            raise RefusedInput(f"resume = must, but {state.folder.path} has no sound checkpoint")
        _reset_quarantine(state)
        return
    refuse_differences(checkpoint.metadata["identity"], run_identity(state), state.folder.path)
    state.progress = Progress.from_json(checkpoint.metadata["progress"])
    state.progress.resumed_from_steps.append(checkpoint.step)
    _reset_quarantine(state)
    _read_tensors(state, checkpoint.folder)
    _restore_random_states(state, checkpoint)
    position = state.progress.step * state.config.batch.global_images
    state.loader.skip_to(position, known_broken(state).values())
    logger.info("going on from %s", checkpoint.folder)


def _reset_quarantine(state: TransferState) -> None:
    if state.accelerator.is_main_process:
        reset_quarantine(quarantine_file(state), known_broken(state).values())


def _newest_on_main(state: TransferState) -> Checkpoint | None:
    """The newest complete checkpoint as the main process found it: all must go on from the same."""
    found = [state.store.newest_complete()] if state.accelerator.is_main_process else [None]
    broadcast_object_list(found)
    return found[0]


def _read_tensors(state: TransferState, folder: Path) -> None:
    put_weights(state, _load(folder / _MODEL))
    state.optimizer.load_state_dict(_load(folder / _OPTIMIZER))
    if (folder / _CHOSEN).exists():
        state.chosen = _load(folder / _CHOSEN)


def _restore_random_states(state: TransferState, checkpoint: Checkpoint) -> None:
    """Each process's own; with another number of processes there is nothing to restore."""
    ranks, rank = state.accelerator.num_processes, state.accelerator.process_index
    if checkpoint.metadata["processes"] == ranks:
        restore_rng_state(_load(checkpoint.folder / _random_states(rank)))
    else:
        seed_dropout(state.config.seed, checkpoint.step, rank)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
