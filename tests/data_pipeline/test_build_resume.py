"""Builds that were interrupted, split into parts and joined: always the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from configs.errors import RefusedInput
from data_pipeline import build
from data_pipeline.build import build_dataset, build_part
from data_pipeline.merge import main as merge_main
from data_pipeline.merge import merge_parts
from data_pipeline.output_folder import Part
from data_pipeline.output_store import LocalStore
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import official_layouts as layouts


@pytest.fixture
def photos(tmp_path):
    """Twelve JPEG files, some of them copies of others, and one that is no image."""
    root = layouts.image_folder(tmp_path / "photos")
    layouts.write(root / "train/class2/notes.txt", b"roses")
    return root


def build_photos(photos, output, **options):
    return build_dataset(
        "image-folder", photos, "train", output, **{"shard_images": 3, "workers": 1, **options}
    )


def part_of(photos, output, text, **options):
    options = {"shard_images": 3, "workers": 1, **options}
    return build_part("image-folder", photos, "train", output, Part.parse(text), **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def num_copies(photos: Path) -> int:
    """Images that equal an earlier one, counted the simple way."""
    files = [path.read_bytes() for path in (photos / "train").rglob("*.jpg")]
    assert 0 < len(files) - len(set(files)) < len(files) - 1
    return len(files) - len(set(files))


@pytest.fixture
def expected(photos, tmp_path):
    build_photos(photos, tmp_path / "expected")
    return files_of(tmp_path / "expected")


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


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_in_any_order_are_joined_to_the_same_bytes(photos, tmp_path, expected, num_parts):
    output = tmp_path / "out"
    for number in range(num_parts, 0, -1):
        summary = part_of(photos, output, f"{number}/{num_parts}")
        assert f"part {number}/{num_parts}" in summary.text()
    summary = merge_parts(output)
    assert files_of(output) == expected
    assert len(summary.skipped) == 1
    assert summary.num_duplicates == num_copies(photos)
    assert "already holds the finished build" in merge_parts(output).text()
    assert "already holds" in part_of(photos, output, "1/2").text()
    assert verify_dataset(output).problems == ()


def test_a_build_without_parts_goes_on_behind_parts(photos, tmp_path, expected):
    part_of(photos, tmp_path / "out", "2/3")
    assert build_photos(photos, tmp_path / "out").num_written > 0
    assert files_of(tmp_path / "out") == expected


def test_missing_parts_are_named(photos, tmp_path):
    part_of(photos, tmp_path / "out", "2/5")
    with pytest.raises(RefusedInput, match=r"4 of 5 shards are not written yet \(numbers 0, 2, 3"):
        merge_parts(tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_part_of_something_else_is_refused(photos, tmp_path):
    part_of(photos, tmp_path / "out", "2/3")
    with pytest.raises(RefusedInput, match=r"unfinished build .*differs: shuffle_seed"):
        part_of(photos, tmp_path / "out", "1/3", seed=4)


def test_a_part_does_not_touch_what_another_is_writing(photos, tmp_path):
    output = tmp_path / "out"
    part_of(photos, output, "1/2")
    theirs = layouts.write(output / ".building/000001.tar.other-7.partial", b"half")
    ours = layouts.write(output / ".building/000002.tar.other-7.partial", b"half")
    part_of(photos, output, "1/2")
    assert theirs.exists() and not ours.exists()


@pytest.mark.parametrize(
    ("held", "started", "is_refused"),
    [
        ("lock", "1/2", True),
        ("lock-1-of-2", "1/2", True),
        ("lock-1-of-2", "2/2", False),
        ("lock-1-of-2", None, True),
    ],
)
def test_who_may_write_beside_whom(photos, tmp_path, monkeypatch, held, started, is_refused):
    monkeypatch.setattr("data_pipeline.output_folder._BEGIN_SECONDS", 0.1)
    output = tmp_path / "out"
    part_of(photos, output, "1/2")

    def start():
        return build_photos(photos, output) if started is None else part_of(photos, output, started)

    with FileLock(output / ".building" / held):
        if is_refused:
            with pytest.raises(RefusedInput, match="another build is writing there"):
                start()
        else:
            start()


def test_merge_without_parts_is_refused(tmp_path, capsys):
    with pytest.raises(RefusedInput, match="holds no parts"):
        merge_main([str(tmp_path / "nothing")])
    assert not (tmp_path / "nothing").exists()
    layouts.image_folder(tmp_path / "in")
    build_dataset("image-folder", tmp_path / "in", "train", tmp_path / "out", workers=1)
    assert merge_main([str(tmp_path / "out")]) == 0
    assert "already holds the finished build" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2"])
def test_parts_are_counted_from_one(text):
    with pytest.raises(RefusedInput, match=r"give I/N with I from 1 to N"):
        Part.parse(text)


def start_build(photos: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_pipeline.build", "--source", "image-folder"]
    command += ["--input", str(photos), "--split", "train", "--output", str(output)]
    command += ["--workers", "2", "--shard-images", "10"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its workers can be killed with it
    )


def finish(process: subprocess.Popen) -> None:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text


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
    finish(start_build(root, tmp_path / "expected"))
    expected = files_of(tmp_path / "expected")
    moments = random.Random(0)
    interrupted = 0
    for attempt in range(40):  # a busy machine may let a build end before it is killed
        output = tmp_path / f"out{attempt}"
        process = start_build(root, output)
        wait_for_progress(output, process, moments.randrange(0, 62))
        time.sleep(moments.uniform(0.0, 0.05))
        if attempt % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        interrupted += process.returncode == -signal.SIGKILL
        finish(start_build(root, output))
        assert files_of(output) == expected
        if interrupted == 10:
            break
    assert interrupted == 10, "the moments were too late to disturb anything"
    assert json.loads(expected["manifest.json"])["num_images"] == 600
