"""Builds that were interrupted go on, and end in the same bytes."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from data_pipeline import build
from data_pipeline.output_store import LocalStore
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline import photo_builds
from tests.data_pipeline.build_processes import finish, start_build
from tests.data_pipeline.photo_builds import build_photos, files_of, num_copies

expected = photo_builds.expected
photos = photo_builds.photos


class Killed(BaseException):
    """Ends a build where it is, as a signal would: nothing of ours handles it."""


def build_until(monkeypatch, photos, output, num_shards: int, **options) -> None:
    """Build, and stop when so many shards are finished."""
    real, calls = build.write_shard, []

    def write(job):
        if len(calls) == num_shards:
            raise Killed
        calls.append(job)
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_shard", write)
        with pytest.raises(Killed):
            build_photos(photos, output, **options)


def test_a_build_goes_on_behind_its_finished_shards(photos, tmp_path, monkeypatch, expected):
    output = tmp_path / "out"
    build_until(monkeypatch, photos, output, 2)
    staged = output / ".building"
    layouts.write(staged / "000003.tar.host-1.partial", b"half")
    kept = {name: (staged / name).stat().st_mtime_ns for name in ("000000.tar", "000001.tar")}
    summary = build_photos(photos, output)
    assert files_of(output) == expected
    assert {p.stat().st_mtime_ns for p in output.glob("*.tar")} >= set(kept.values())
    assert summary.num_written < summary.manifest.num_images
    assert "lay there from an earlier start" in summary.text()
    assert len(summary.skipped) == 1
    assert summary.num_duplicates == num_copies(photos)
    assert f"{num_copies(photos)} images are exact copies of others" in summary.text()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "record cut", "record gone"])
def test_finished_shards_are_looked_at_before_they_are_trusted(
    photos, tmp_path, monkeypatch, expected, damage
):
    output = tmp_path / "out"
    build_until(monkeypatch, photos, output, 2)
    path = output / ".building" / ("000001.arrow" if "record" in damage else "000001.tar")
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:900]))
    if "gone" in damage:
        path.unlink()
    build_photos(photos, output)
    assert files_of(output) == expected


@pytest.mark.parametrize("num_steps", range(8))
def test_a_build_that_ended_while_it_was_joined(photos, tmp_path, monkeypatch, expected, num_steps):
    """Interrupted before each of five renames, and before index, skipped files and manifest."""
    steps = []

    def step(*_):
        if len(steps) == num_steps:
            raise Killed
        steps.append(1)

    def move(self, names):
        for name, target in names:
            step()
            os.replace(self.root / name, self.root / target)

    real_create, real_join = LocalStore.create, build.join_shards

    def join(*args):
        monkeypatch.setattr(LocalStore, "move", move)
        monkeypatch.setattr(LocalStore, "create", lambda *a, **k: (step(), real_create(*a, **k))[1])
        return real_join(*args)

    output = tmp_path / "out"
    monkeypatch.setattr(build, "join_shards", join)
    with pytest.raises(Killed):
        build_photos(photos, output)
    monkeypatch.undo()
    summary = build_photos(photos, output)
    assert files_of(output) == expected
    assert summary.num_written == 0  # all were there, under one name or the other


@pytest.mark.parametrize("name", ["index.parquet", "skipped.jsonl", "manifest.json"])
def test_what_was_half_written_at_the_end_is_removed(photos, tmp_path, monkeypatch, expected, name):
    """A process that is killed removes nothing."""
    output = tmp_path / "out"
    build_until(monkeypatch, photos, output, 4)
    layouts.write(output / f"{name}.host-7.partial", b"half")
    build_photos(photos, output)
    assert files_of(output) == expected


def test_what_a_build_leaves_behind_its_manifest_is_removed(photos, tmp_path, expected):
    output = tmp_path / "out"
    build_photos(photos, output)
    layouts.write(output / ".building/000000.arrow", b"left")
    assert build_photos(photos, output).already_built
    assert files_of(output) == expected


@pytest.mark.parametrize("change", [{"seed": 1}, {"shard_images": 2}, {"keep_broken": True}])
def test_an_unfinished_build_of_something_else_is_not_thrown_away(
    photos, tmp_path, monkeypatch, change
):
    output = tmp_path / "out"
    build_until(monkeypatch, photos, output, 2)
    before = files_of(output)
    with pytest.raises(RefusedInput, match="unfinished build of something else") as refused:
        build_photos(photos, output, **change)
    name = "shuffle_seed" if "seed" in change else next(iter(change))
    assert name in str(refused.value)
    assert files_of(output) == before


def test_a_beginning_without_a_finished_shard_is_replaced(photos, tmp_path, monkeypatch):
    output = tmp_path / "out"
    build_until(monkeypatch, photos, output, 0)
    assert build_photos(photos, output, seed=1).manifest.source["shuffle_seed"] == 1


def start(photos: Path, output: Path) -> subprocess.Popen:
    words = ["--source", "image-folder", "--input", photos, "--split", "train"]
    return start_build(*words, "--output", output, "--workers", 2, "--shard-images", 10)


def wait_for_progress(output: Path, process: subprocess.Popen, num_events: int) -> None:
    """Return when so many shards have a record or, after that, a name; or the build has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        names = [path.name for path in output.rglob("*")]
        records = sum(name.endswith(".arrow") for name in names)
        if records + sum(name.startswith("train-") for name in names) >= num_events:
            return
        time.sleep(0.002)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_build_killed_at_ten_random_moments_ends_as_if_undisturbed(tmp_path):
    """kill -9 of the parent alone, or of its workers too; moments are drawn in shards; seed 0."""
    root = tmp_path / "in"
    for number in range(600):
        data = layouts.image_bytes(number, size=(64, 48))
        layouts.write(root / f"train/class{number % 7}/{number}.jpg", data)
    finish(start(root, tmp_path / "expected"))
    expected = files_of(tmp_path / "expected")
    moments = random.Random(0)
    interrupted = 0
    for attempt in range(40):  # a busy machine may let a build end before it is killed
        output = tmp_path / f"out{attempt}"
        process = start(root, output)
        wait_for_progress(output, process, moments.randrange(0, 62))
        time.sleep(moments.uniform(0.0, 0.05))
        if attempt % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        interrupted += process.returncode == -signal.SIGKILL
        finish(start(root, output))
        assert files_of(output) == expected
        if interrupted == 10:
            break
    assert interrupted == 10, "the moments were too late to disturb anything"
    assert json.loads(expected["manifest.json"])["num_images"] == 600
