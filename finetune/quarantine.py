"""Broken images: what the processes have met, put together, listed, and held against the budget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from accelerate.utils import gather_object

from data_pipeline.broken import (
    BrokenRecord,
    add_new_records,
    append_quarantine,
    check_broken_budget,
)
from data_pipeline.index import ShardedDataset
from data_pipeline.loader import EvalLoader
from finetune.state import TransferState


def quarantine_file(state: TransferState) -> Path:
    """The list of broken training images in the run folder."""
    return state.folder.path / "quarantine.jsonl"


def known_broken(state: TransferState) -> dict[int, BrokenRecord]:
    """Broken training images that all processes together know of, by row."""
    return {int(row): BrokenRecord(**fields) for row, fields in state.progress.broken.items()}


def share_broken_images(state: TransferState) -> None:
    """Put together which broken training images the processes have met; a collective.

    Before anything is reported or saved, so that a checkpoint never holds weights from beyond the
    budget.

    Raises:
        RefusedInput: There are more than `max_broken_fraction` allows; raised on all processes.
    """
    known = known_broken(state)
    new = add_new_records(known, gather_object(state.loader.take_new_broken()))
    state.progress.broken = {str(row): asdict(record) for row, record in known.items()}
    if state.accelerator.is_main_process:
        append_quarantine(quarantine_file(state), new)
    _check(state, known, state.loader.dataset)


def check_evaluated(state: TransferState, images: EvalLoader) -> None:
    """Hold the broken images of an evaluation against the budget; a collective.

    Raises:
        RefusedInput: There are too many; on all processes.
    """
    broken: dict[int, BrokenRecord] = {}
    add_new_records(broken, gather_object(images.broken))
    _check(state, broken, images.dataset)


def _check(state: TransferState, broken: dict[int, BrokenRecord], dataset: ShardedDataset) -> None:
    fraction = state.config.max_broken_fraction
    check_broken_budget(list(broken.values()), dataset.num_images, fraction)
