"""Builds from a stream that were interrupted or split into parts: always the same bytes."""

import errno
import os
import random
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.errors import RefusedInput
from data_pipeline.growing_shards import GrowingShards, _GrowingTar
from data_pipeline.merge import merge_parts
from data_pipeline.output_store import LocalStore
from data_pipeline.shard_plan import BuildOptions, plan_shards
from data_pipeline.shard_record import ShardRecord
from data_pipeline.sources.remote_files import SourceUnavailable
from data_pipeline.sources.stream_source import DamagedSource
from data_pipeline.stream_journal import StreamJournal
from tests.data_pipeline import memory_store
from tests.data_pipeline.sample_label_sets import LabelSetStream
from tests.data_pipeline.sample_streams import Stream, build, files_of, part

memory = memory_store.memory
# A checkpoint every third image or so: each takes 2.5 kB.
OPTIONS = {"shards": 4, "buffer_bytes": 7_000}


class Killed(BaseException):
    """Ends a build where it is, as a signal would: nothing of ours handles it."""


@pytest.fixture
def expected(tmp_path):
    build(tmp_path / "expected", **OPTIONS)
    return files_of(tmp_path / "expected")


def stop_before(patch, num_steps: int) -> None:
    """Kill the build before its step of this number: all that changes something on disk."""
    steps = []

    def step(self, real, *args, **options):
        if len(steps) == num_steps:
            raise Killed
        steps.append(1)
        return real(self, *args, **options)

    for owner, name in (
        (_GrowingTar, "write"),
        (LocalStore, "write"),
        (LocalStore, "take"),
        (LocalStore, "move"),
        (ShardRecord, "save"),
    ):
        patch.setattr(owner, name, partialmethod(step, getattr(owner, name)))


@pytest.mark.parametrize("num_steps", range(1, 82, 8))
def test_a_stream_that_was_killed_goes_on(tmp_path, monkeypatch, expected, num_steps):
    """Within and between checkpoints, while shards are finished, and while they are joined."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_before(patch, num_steps)
        with pytest.raises(Killed):
            build(output, **OPTIONS)
    stream = Stream()
    build(output, stream, **OPTIONS)
    assert files_of(output) == expected
    # A checkpoint takes seven steps at most.
    assert num_steps < 10 or all(start > 0 for start in stream.starts)


def test_a_stream_that_is_killed_again_and_again_ends(tmp_path, monkeypatch, expected):
    """Seeded with 0; every start gets a little further."""
    steps, output = random.Random(0), tmp_path / "out"
    num_kills, summary = 0, None
    while summary is None:
        with monkeypatch.context() as patch:
            stop_before(patch, steps.randrange(8, 30))
            try:
                summary = build(output, **OPTIONS)
            except Killed:
                num_kills += 1
                assert num_kills < 100
    assert num_kills > 3 and files_of(output) == expected
    assert summary.num_written < 59
    assert "lay there from an earlier start" in summary.text()


def test_label_sets_outlast_a_kill(tmp_path, monkeypatch):
    build(tmp_path / "expected", LabelSetStream(24, 4), **OPTIONS)
    with monkeypatch.context() as patch:
        stop_before(patch, 20)
        with pytest.raises(Killed):
            build(tmp_path / "out", LabelSetStream(24, 4), **OPTIONS)
    build(tmp_path / "out", LabelSetStream(24, 4), **OPTIONS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_rows_are_sorted_in_groups(tmp_path, monkeypatch, expected):
    monkeypatch.setattr("data_pipeline.growing_shards._ROWS_SORTED_AT_ONCE", 20)
    build(tmp_path / "out", **OPTIONS)
    assert files_of(tmp_path / "out") == expected


def interrupted(output, monkeypatch, num_steps=30):
    with monkeypatch.context() as patch:
        stop_before(patch, num_steps)
        with pytest.raises(Killed):
            build(output, **OPTIONS)
    return output / ".building/stream"


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "progress cut"])
def test_what_grew_is_looked_at_before_it_is_trusted(tmp_path, monkeypatch, expected, damage):
    growth = interrupted(tmp_path / "out", monkeypatch)
    path = growth / ("progress.json" if "progress" in damage else "000001.tar")
    data = bytearray(path.read_bytes())
    data[700 if damage == "flipped" else 0] ^= 1
    path.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:90]))
    if damage == "gone":
        path.unlink()
    stream = Stream()
    build(tmp_path / "out", stream, **OPTIONS)
    assert files_of(tmp_path / "out") == expected
    assert stream.starts == [0]


def test_a_checkpoint_leaves_no_strange_files(tmp_path, monkeypatch):
    growth = interrupted(tmp_path / "out", monkeypatch)
    (growth / "rows-000999.arrow.host-7.partial").write_bytes(b"half")
    progress = StreamJournal(growth).progress()
    GrowingShards(growth, range(4))
    names = {path.name for path in growth.iterdir()} - {"lock"}
    rows = {f"rows-{number:06d}.arrow" for number in range(progress.num_row_files)}
    assert names == rows | {"progress.json", *(f"00000{number}.tar" for number in range(4))}
    assert {n: (growth / f"{n:06d}.tar").stat().st_size for n in range(4)} == progress.num_bytes


def test_an_unfinished_stream_of_something_else_is_not_thrown_away(tmp_path, monkeypatch, expected):
    output = tmp_path / "out"
    interrupted(output, monkeypatch)
    with pytest.raises(RefusedInput, match=r"unfinished build of something else .*shuffle_seed"):
        build(output, seed=1, **OPTIONS)
    build(output, **OPTIONS)
    assert files_of(output) == expected


@dataclass
class Breaking(Stream):
    """Ends in an error after forty images."""

    error: Exception | None = None

    def stream(self, start=0):
        for number, image in enumerate(super().stream(start), start):
            if number == 40:
                raise self.error
            yield image


@pytest.mark.parametrize("error", [SourceUnavailable("no answer"), OSError(28, "disk full")])
def test_what_may_pass_costs_only_the_last_images(tmp_path, expected, error):
    output = tmp_path / "out"
    with pytest.raises(RefusedInput, match=r"no answer|disk full"):
        build(output, Breaking(error=error), **OPTIONS)
    stream = Stream()
    summary = build(output, stream, **OPTIONS)
    assert files_of(output) == expected
    assert stream.starts[0] > 20 and summary.num_written < 40


def test_nothing_is_kept_of_a_damaged_source(tmp_path):
    """What was read before the damage was noticed may be wrong too."""
    with pytest.raises(RefusedInput, match="cut short"):
        build(tmp_path / "out", Breaking(error=DamagedSource("cut short")), **OPTIONS)
    assert files_of(tmp_path / "out") == {}


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_in_any_order_are_joined_to_the_same_bytes(tmp_path, expected, num_parts):
    output, num_read = tmp_path / "out", 0
    for number in range(num_parts, 0, -1):
        stream = Stream()
        summary = part(output, f"{number}/{num_parts}", stream, **OPTIONS)
        assert f"part {number}/{num_parts}" in summary.text()
        assert ("a notice" in summary.text()) == (number <= 4)  # the others have no shards
        num_read += stream.num_read
    assert num_read == 60  # each image by one part
    summary = merge_parts(output)
    assert files_of(output) == expected
    assert len(summary.skipped) == 1 and summary.num_duplicates == 58
    assert "already holds" in part(output, "1/2", **OPTIONS).text()


def test_a_part_that_was_killed_goes_on(tmp_path, monkeypatch, expected):
    output, stream = tmp_path / "out", Stream()
    with monkeypatch.context() as patch:
        stop_before(patch, 20)
        with pytest.raises(Killed):
            part(output, "1/2", **OPTIONS)
    part(output, "2/2", **OPTIONS)
    with pytest.raises(RefusedInput, match=r"2 of 4 shards are not written yet"):
        merge_parts(output)
    part(output, "1/2", stream, **OPTIONS)
    assert stream.starts[0] > 0
    merge_parts(output)
    assert files_of(output) == expected


def test_a_build_without_parts_writes_what_they_left(tmp_path, monkeypatch, expected):
    output, stream = tmp_path / "out", Stream()
    part(output, "2/2", **OPTIONS)
    with monkeypatch.context() as patch:
        stop_before(patch, 20)
        with pytest.raises(Killed):
            part(output, "1/2", **OPTIONS)
    assert (output / ".building/stream-1-of-2").is_dir()
    build(output, stream, **OPTIONS)
    assert files_of(output) == expected
    assert 0 < stream.num_read < 60


def test_a_part_of_something_else_is_refused_before_any_shard_is_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before(patch, 3)
        with pytest.raises(Killed):
            part(tmp_path / "out", "1/2", **OPTIONS)
    with pytest.raises(RefusedInput, match=r"unfinished build .*differs: shuffle_seed"):
        part(tmp_path / "out", "2/2", seed=4, **OPTIONS)


@pytest.mark.parametrize("num_steps", [20, 70, 1000])
def test_shards_of_a_url_grow_in_the_scratch_folder(
    tmp_path, monkeypatch, memory, expected, num_steps
):
    options = {**OPTIONS, "scratch": tmp_path / "scratch"}
    with monkeypatch.context() as patch:
        stop_before(patch, num_steps)
        try:
            build("memory://out", **options)
        except Killed:
            assert not any("manifest" in name for name in memory())
    stream = Stream()
    build("memory://out", stream, **options)
    assert {name.removeprefix("out/"): data for name, data in memory().items()} == expected
    assert 0 not in stream.starts
    assert list((tmp_path / "scratch").iterdir()) == []


def test_parts_meet_at_a_url(tmp_path, memory, expected):
    for number in (2, 1):
        part("memory://out", f"{number}/2", scratch=tmp_path / "scratch", **OPTIONS)
    merge_parts("memory://out")
    assert {name.removeprefix("out/"): data for name, data in memory().items()} == expected


@pytest.mark.parametrize("is_other_disk", [False, True])
def test_a_scratch_folder_may_serve_a_folder_too(tmp_path, monkeypatch, expected, is_other_disk):
    real = os.replace

    def replace(source, target):
        is_there = Path(source).is_relative_to(tmp_path / "scratch")
        if is_other_disk and is_there and Path(target).is_relative_to(tmp_path / "out"):
            raise OSError(errno.EXDEV, "another disk")
        real(source, target)

    monkeypatch.setattr("data_pipeline.output_store.os.replace", replace)
    build(tmp_path / "out", scratch=tmp_path / "scratch", **OPTIONS)
    assert files_of(tmp_path / "out") == expected
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_url_needs_a_scratch_folder_and_a_listing_none(tmp_path, memory):
    with pytest.raises(RefusedInput, match=r"memory://out: stream is read .* --scratch DIR"):
        build("memory://out", **OPTIONS)
    listing = SimpleNamespace(name="photos", labels=[])
    with pytest.raises(RefusedInput, match=r"--scratch .*: photos is a listing"):
        plan_shards(listing, BuildOptions(scratch=tmp_path))
