"""Checkpoints count when they are whole, whatever happens while one is saved."""

import json
import logging
import os
import re
import shutil

import pytest

from training import checkpoint_marker, checkpoint_store
from training.checkpoint_marker import MARKER
from training.checkpoint_store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def save(store, step, content=b"weights"):
    temporary = store.begin(step)
    (temporary / "sub").mkdir()
    (temporary / "sub" / "model.bin").write_bytes(content)
    (temporary / "rank-00000.pt").write_bytes(b"state of rank 0")
    return store.complete(temporary, step, {"position": step * 64})


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_what_is_saved_is_found_again(store):
    saved = save(store, 1000)
    found = store.newest_complete()
    assert found == saved
    assert (found.step, found.metadata) == (1000, {"position": 64000})
    assert found.folder == store.folder / "step-00001000"
    assert (found.folder / "sub" / "model.bin").read_bytes() == b"weights"
    assert (store.folder / "latest").read_text() == "step-00001000\n"
    marker = json.loads((found.folder / MARKER).read_text())
    assert set(marker["files"]) == {"sub/model.bin", "rank-00000.pt"}


def test_nothing_saved_nothing_found(store):
    assert store.newest_complete() is None


def test_the_temporary_folder_has_the_same_name_on_every_rank(store):
    assert store.begin(7) == CheckpointStore(store.folder).temporary_folder(7)


def test_the_newest_k_and_milestones_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, milestone_every_steps=20)
    for step in range(10, 80, 10):
        save(store, step)
    kept = [f"step-{step:08d}" for step in (20, 40, 60, 70)]
    assert names(store) == ["latest", *kept]


def test_a_missing_file_makes_no_checkpoint(store):
    save(store, 10)
    temporary = store.begin(20)
    (temporary / "rank-00000.pt").write_bytes(b"x")
    with pytest.raises(RuntimeError, match=r"incomplete: rank-00001\.pt missing"):
        expected = ["rank-00000.pt", "rank-00001.pt"]
        store.complete(temporary, 20, {}, expected_files=expected)
    assert store.newest_complete().step == 10


def truncate(folder):
    path = folder / "sub" / "model.bin"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder):
    path = folder / "sub" / "model.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


DAMAGE = {
    "truncated": (truncate, r"sub/model\.bin has 6 bytes instead of 7"),
    "bit flipped": (flip_a_bit, r"sub/model\.bin has changed"),
    "file gone": (lambda f: (f / "rank-00000.pt").unlink(), r"rank-00000\.pt is missing"),
    "marker gone": (lambda f: (f / MARKER).unlink(), "its save did not end"),
    "marker cut": (lambda f: (f / MARKER).write_text('{"format'), "cannot be read"),
    "marker of another": (lambda f: _edit_marker(f, step=5), "step 5"),
    "marker changed": (
        lambda f: _edit_marker(f, metadata={"position": 1281}),
        "marker.json has changed since it was saved",
    ),
    "newer format": (lambda f: _edit_marker(f, format_version=99), "format version 99"),
}


def test_a_marker_from_before_it_had_a_digest_counts(store):
    folder = save(store, 10).folder
    marker = json.loads((folder / MARKER).read_text())
    del marker["sha256"]
    (folder / MARKER).write_text(json.dumps(marker))
    assert store.newest_complete().step == 10


def _edit_marker(folder, **changes):
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(marker | changes))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_is_passed_over_and_reported(store, caplog, kind):
    save(store, 10)
    newest = save(store, 20)
    damage, reason = DAMAGE[kind]
    damage(newest.folder)
    with caplog.at_level(logging.WARNING):
        found = store.newest_complete()
    assert found.step == 10
    assert len(caplog.records) == 1
    message = caplog.text
    assert "step-00000020" in message
    assert re.search(reason, message)


def test_all_damaged_is_none_and_each_is_named(store, caplog):
    for step in (10, 20):
        truncate(save(store, step).folder)
    assert store.newest_complete() is None
    assert len(caplog.records) == 2


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(store):
    save(store, 10)
    truncate(save(store, 20).folder)
    assert store.newest_complete().step == 10
    save(store, 20, b"better")
    assert (store.newest_complete().folder / "sub" / "model.bin").read_bytes() == b"better"


def test_damaged_checkpoints_do_not_push_out_sound_ones(store):
    save(store, 10)
    truncate(save(store, 20).folder)
    store.newest_complete()
    save(store, 30)
    assert names(store) == ["latest", "step-00000010", "step-00000030"]


def test_leftovers_of_a_crashed_save_are_reported_and_removed(store, caplog):
    leftover = store.begin(10)
    (leftover / "half").write_bytes(b"x")
    fresh = CheckpointStore(store.folder)
    temporary = fresh.begin(10)
    assert "left behind" in caplog.text
    assert list(temporary.iterdir()) == []


def test_a_foreign_folder_is_left_alone(store):
    (store.folder / "step-old").mkdir(parents=True)
    (store.folder / "notes").mkdir()
    for step in (10, 20, 30):
        save(store, step)
    assert (store.folder / "notes").is_dir() and (store.folder / "step-old").is_dir()


class Crash(Exception):
    """Stands for kill -9: nothing after it runs."""


class CrashAfter:
    """Lets a number of file system calls through, then fails every one."""

    def __init__(self, monkeypatch, calls):
        self.left = calls
        for module, name in (
            (os, "rename"),
            (os, "replace"),
            (os, "fsync"),
            (os, "mkdir"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function):
        def call(*arguments, **options):
            if self.left == 0:
                raise Crash
            self.left -= 1
            return function(*arguments, **options)

        return call


def test_a_crash_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    """keep = 1, so that every save also removes one: the old or the new is always there."""
    crashes = 0
    for calls in range(60):
        store = CheckpointStore(tmp_path / str(calls), keep=1)
        save(store, 10, b"old")
        with pytest.MonkeyPatch.context() as patch:
            CrashAfter(patch, calls)
            try:
                save(store, 20, b"new")
                finished = True
            except Crash:
                finished = False
                crashes += 1
        found = CheckpointStore(store.folder).newest_complete()
        content = (found.folder / "sub" / "model.bin").read_bytes()
        assert (found.step, content) in {(10, b"old"), (20, b"new")}
        after = CheckpointStore(store.folder, keep=1)
        save(after, 30)
        assert names(after) == ["latest", "step-00000030"]
        if finished:
            assert found.step == 20
            break
    assert finished and crashes > 10


def test_retention_begins_only_once_the_new_one_is_complete(store, monkeypatch):
    store.keep = 1
    save(store, 10)
    seen = []
    remove = CheckpointStore._remove

    def watched(self, folder):
        seen.append(self.newest_complete().step)
        remove(self, folder)

    monkeypatch.setattr(CheckpointStore, "_remove", watched)
    save(store, 20)
    assert seen == [20]


def test_everything_is_flushed_before_the_marker_is_written(store, monkeypatch):
    events = []
    flush, write = checkpoint_store.flush_to_disk, checkpoint_store.write_atomically
    for module in (checkpoint_store, checkpoint_marker):
        monkeypatch.setattr(module, "flush_to_disk", lambda p: (events.append(p.name), flush(p)))
        monkeypatch.setattr(
            module, "write_atomically", lambda p, t: (events.append(p.name), write(p, t))
        )
    save(store, 10)
    before_marker = events[: events.index(MARKER)]
    assert {"model.bin", "rank-00000.pt", "sub"} <= set(before_marker)
    assert events.index(MARKER) < events.index("latest")
