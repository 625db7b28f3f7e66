"""Broken images of a run: shared by the ranks, listed, held against the budget, saved."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenRecord
from pretrain import checkpoint, quarantine


def record(row: int, shard: str = "a.tar") -> BrokenRecord:
    return BrokenRecord(row, shard, f"{row:08d}", "torn")


def rank_of_a_run(folder: Path, *, is_main: bool, found: list[BrokenRecord]) -> Any:
    """What broken images concern of a rank's state: 100 images, ten of which may be broken."""
    data = SimpleNamespace(max_broken_fraction=0.001)
    plan = SimpleNamespace(
        config=SimpleNamespace(data=data),
        ranks=SimpleNamespace(is_main=is_main),
        train=SimpleNamespace(num_images=100),
    )
    loader = SimpleNamespace(take_new_broken=lambda: found)
    return SimpleNamespace(plan=plan, loader=loader, broken={}, folder=SimpleNamespace(path=folder))


@pytest.fixture
def two_ranks(monkeypatch):
    """Makes ranks that find what is given, and lets each of them know of both."""

    def make(folder: Path, *found: list[BrokenRecord]) -> list[Any]:
        of_all = [record for of_rank in found for record in of_rank]
        monkeypatch.setattr(quarantine, "_of_all_ranks", lambda _: of_all)
        return [rank_of_a_run(folder, is_main=n == 0, found=f) for n, f in enumerate(found)]

    return make


def test_all_ranks_list_what_any_has_met(two_ranks, tmp_path):
    ranks = two_ranks(tmp_path, [record(7), record(2)], [record(5), record(7)])
    for _ in range(2):  # the second time nothing is new
        for rank in ranks:
            quarantine.share_broken_images(rank)
    assert [list(rank.broken) for rank in ranks] == [[2, 5, 7]] * 2
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [2, 5, 7]


def test_past_the_budget_every_rank_is_refused(two_ranks, tmp_path):
    """Neither has met more than ten itself."""
    found = [[record(row) for row in rows] for rows in (range(6), range(6, 12))]
    for rank in two_ranks(tmp_path, *found):
        with pytest.raises(RefusedInput, match="12 of 100 images cannot be read, more than the 10"):
            quarantine.share_broken_images(rank)


def test_a_checkpoint_brings_its_list_back(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "restore", lambda training, found: None)
    metadata = {
        "seconds": 3.0,
        "step": 5,
        "resumed_from_steps": [],
        "world_size": 2,
        "broken": [asdict(record(row)) for row in (4, 9)],
    }
    training = rank_of_a_run(tmp_path, is_main=True, found=[])
    training.folder.status = dict
    training.plan.ranks.world_size = 1
    found = SimpleNamespace(metadata=metadata, folder=tmp_path)
    checkpoint.load_checkpoint(training, found)
    assert training.broken == {4: record(4), 9: record(9)}
