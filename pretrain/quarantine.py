"""Broken images: what the ranks have met, put together, listed, and held against the budget."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist

from data_pipeline.broken import (
    BrokenRecord,
    add_new_records,
    append_quarantine,
    check_broken_budget,
    reset_quarantine,
    told_by_shard,
)
from data_pipeline.index import ShardedDataset
from data_pipeline.loader import EvalLoader
from pretrain.state import Training

logger = logging.getLogger(__name__)


def quarantine_file(training: Training) -> Path:
    """The list of broken training images in the run folder."""
    return training.folder.path / "quarantine.jsonl"


def share_broken_images(training: Training) -> None:
    """Tell every rank which broken images the others have met; a collective.

    Before anything is reported or saved, so that a checkpoint lists all that is broken up to its
    position and never holds weights from beyond the budget.

    Raises:
        RefusedInput: There are too many; on all ranks.
    """
    new = add_new_records(training.broken, _of_all_ranks(training.loader.take_new_broken()))
    file = quarantine_file(training)
    if training.plan.ranks.is_main:
        append_quarantine(file, new)
    _check(training, training.broken, training.plan.train, file)
    if new:
        told = told_by_shard(new)
        logger.warning("%d more images are broken, others stand in for them: %s", len(new), told)


def settle_evaluation(training: Training, loader: EvalLoader, part: str = "validation") -> int:
    """List the images that an evaluation left out as broken, on all ranks; a collective.

    `part` says what they are, for the name of the list and for people.

    Returns:
        Their number.

    Raises:
        RefusedInput: There are too many; on all ranks.
    """
    broken: dict[int, BrokenRecord] = {}
    add_new_records(broken, _of_all_ranks(loader.broken))
    file = training.folder.path / f"quarantine-{part}.jsonl"
    if training.plan.ranks.is_main:
        reset_quarantine(file, broken.values())
    _check(training, broken, loader.dataset, file)
    if broken:
        told = told_by_shard(broken.values())
        logger.warning("%d %s images are broken and not scored: %s", len(broken), part, told)
    return len(broken)


def _of_all_ranks(records: list[BrokenRecord]) -> list[BrokenRecord]:
    found: list[list[BrokenRecord]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, records)
    return [record for of_rank in found for record in of_rank]


def _check(
    training: Training, broken: dict[int, BrokenRecord], dataset: ShardedDataset, file: Path
) -> None:
    fraction = training.plan.config.data.max_broken_fraction
    check_broken_budget(broken.values(), dataset.num_images, fraction, listed_in=file)
