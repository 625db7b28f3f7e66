"""Repairs that meet, crash or fill the disk leave the old dataset or the new one."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from configs.errors import RefusedInput
from data_pipeline import repair, staged_files
from data_pipeline.repair import repair_dataset
from tests.data_pipeline import damaged_dataset
from tests.data_pipeline.damaged_dataset import cut, files, spoil, two_images, unlink

built = damaged_dataset.built
dataset = damaged_dataset.dataset


def test_two_repairs_do_not_meet(dataset) -> None:
    (dataset / ".repair").mkdir()
    with FileLock(dataset / ".repair" / "lock"), pytest.raises(RefusedInput, match="at work"):
        repair_dataset(dataset)


@pytest.mark.parametrize(
    "plan",
    [
        "no json",
        "[]",
        '{"replaced": {}}',
        '{"replaced": {}, "removed": ["../precious"]}',
        '{"replaced": {"../precious": "manifest.json"}, "removed": []}',
        '{"replaced": {"index.parquet": "/precious"}, "removed": []}',
    ],
)
def test_a_foreign_marker_moves_and_removes_nothing(dataset, plan) -> None:
    """Datasets are downloaded, and with them whatever lies in their folders."""
    (dataset.parent / "precious").write_text("mine")
    (dataset / ".repair").mkdir()
    (dataset / ".repair" / "ready.json").write_text(plan)
    before = files(dataset.parent)
    with pytest.raises(RefusedInput, match=r"ready\.json was not written by a repair"):
        repair_dataset(dataset)
    after = files(dataset.parent)
    assert {n: d for n, d in after.items() if not n.endswith("lock")} == before


class Killed(BaseException):
    """Stands for a power cut."""


def test_a_crash_at_any_moment_leaves_the_old_or_is_gone_on_with(dataset, monkeypatch) -> None:
    cut(dataset)
    unlink(dataset)
    two_images(dataset)
    expected_folder = Path(shutil.copytree(dataset, dataset.with_name("expected")))
    repair_dataset(expected_folder, max_lost_fraction=1.0)
    expected = files(expected_folder)
    old_manifest = (dataset / "manifest.json").read_bytes()
    moments = {"begun": 0, "decided": 0}

    for moment in range(100):
        folder = Path(shutil.copytree(dataset, dataset.with_name(f"crash-{moment}")))
        is_over = crash_after(moment, folder, monkeypatch)
        marker = folder / ".repair" / "ready.json"
        if marker.exists():
            moments["decided"] += 1
            with pytest.raises(RefusedInput, match="a repair was interrupted"):
                repair_dataset(folder, dry_run=True)
        elif not is_over and (folder / "manifest.json").read_bytes() == old_manifest:
            moments["begun"] += 1
            kept = {n: d for n, d in files(folder).items() if n in files(dataset)}
            assert kept == files(dataset)
        repair_dataset(folder, max_lost_fraction=1.0)
        assert files(folder) == expected
        shutil.rmtree(folder)
        if is_over:
            break
    assert is_over and min(moments.values()) >= 3


def crash_after(moment: int, folder: Path, monkeypatch) -> bool:
    """Repair until the disk has been changed so often; whether it came to its end before."""
    left = [moment]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == -1:
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for place, name in [
            (os, "replace"),
            (os, "fsync"),
            (Path, "unlink"),
            (repair, "write_repaired"),
        ]:
            patch.setattr(place, name, counted(getattr(place, name)))
        # A process that is killed clears nothing away.
        patch.setattr(staged_files.shutil, "rmtree", lambda *_, **__: None)
        try:
            repair_dataset(folder, max_lost_fraction=1.0)
        except Killed:
            return False
    shutil.rmtree(folder / ".repair")
    return True


def test_a_full_disk_is_said_and_changes_nothing(dataset, monkeypatch) -> None:
    spoil(dataset, 0)
    before = files(dataset)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(repair, "write_repaired", full)
    with pytest.raises(RefusedInput, match=r"cannot be repaired: .*No space left"):
        repair_dataset(dataset)
    assert files(dataset) == before
