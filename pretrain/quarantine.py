"""Broken images: what the ranks have met, put together, listed, and held against the budget."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from data_pipeline.broken import (
    BrokenRecord,
    add_new_records,
    append_quarantine,
    check_broken_budget,
)
from data_pipeline.index import ShardedDataset
from data_pipeline.loader import EvalLoader
from pretrain.state import Training


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
    if training.plan.ranks.is_main:
        append_quarantine(quarantine_file(training), new)
    _check(training, list(training.broken.values()), training.plan.train)


def check_evaluated(training: Training, loader: EvalLoader) -> None:
    """Hold the broken images of an evaluation on all ranks against the budget; a collective.

    Raises:
        RefusedInput: There are too many; on all ranks.
    """
    broken: dict[int, BrokenRecord] = {}
    add_new_records(broken, _of_all_ranks(loader.broken))
    _check(training, list(broken.values()), loader.dataset)


def _of_all_ranks(records: list[BrokenRecord]) -> list[BrokenRecord]:
    found: list[list[BrokenRecord]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, records)
    return [record for of_rank in found for record in of_rank]


def _check(training: Training, broken: list[BrokenRecord], dataset: ShardedDataset) -> None:
    fraction = training.plan.config.data.max_broken_fraction
    check_broken_budget(broken, dataset.num_images, fraction)
