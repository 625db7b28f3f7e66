"""Broken images: what the processes have met, put together, listed, and held against the budget."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from accelerate.utils import gather_object

from data_pipeline.broken import (
    BrokenRecord,
    add_new_records,
    append_quarantine,
    check_broken_budget,
    reset_quarantine,
    told_by_shard,
)
from data_pipeline.loader import EvalLoader
from finetune.state import TransferState

logger = logging.getLogger(__name__)


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
    file = quarantine_file(state)
    if state.accelerator.is_main_process:
        append_quarantine(file, new)
    check_broken_budget(
        known.values(),
        state.loader.dataset.num_images,
        state.config.max_broken_fraction,
        option="max_broken_fraction",
        listed_in=file,
    )
    if new:
        told = told_by_shard(new)
        logger.warning("%d more images are broken, others stand in for them: %s", len(new), told)


def settle_evaluation(state: TransferState, images: EvalLoader) -> int:
    """List the images that an evaluation left out as broken, on all processes; a collective.

    Returns:
        Their number.

    Raises:
        RefusedInput: There are too many; on all processes.
    """
    part = "test" if images is state.test else "validation"
    return settle_images(images, part, state.folder.path, is_main=state.accelerator.is_main_process)


def settle_images(images: EvalLoader, part: str, folder: Path | None, *, is_main: bool) -> int:
    """The same for any images; `folder` is where the list goes, if it goes anywhere."""
    broken: dict[int, BrokenRecord] = {}
    add_new_records(broken, gather_object(images.broken))
    file = None if folder is None else folder / f"quarantine-{part}.jsonl"
    if is_main and file is not None:
        reset_quarantine(file, broken.values())
    check_broken_budget(
        broken.values(),
        images.dataset.num_images,
        images.max_broken_fraction,
        option="max_broken_fraction",
        listed_in=file,
    )
    if broken:
        told = told_by_shard(broken.values())
        logger.warning("%d %s images are broken and not scored: %s", len(broken), part, told)
    return len(broken)
