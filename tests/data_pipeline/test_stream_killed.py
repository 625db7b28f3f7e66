"""Builds from a stream in processes that are killed with signal 9."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.data_pipeline import archive_layouts as layouts
from tests.data_pipeline.build_processes import finish, start_build
from tests.data_pipeline.sample_streams import files_of

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = {
    "copied": ["--check", "quick", "--workers", "1"],
    "decoded by workers": ["--check", "decode", "--workers", "2"],
}
NUM_IMAGES = 4 * 120


def start(archive: Path, output: Path, recipe: str) -> subprocess.Popen:
    words = ["--source", "imagenet-21k", "--input", archive, "--classes", archive.parent / "list"]
    words += ["--split", "train", "--output", output, "--shards", 5, "--buffer-bytes", 20000]
    return start_build(*words, *RECIPES[recipe])


def wait_for_progress(output: Path, process: subprocess.Popen, num_files: int) -> None:
    """Return when so many checkpoints, records or shards are there, or the build has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        names = [path.name for path in output.rglob("*")]
        if sum(name.endswith(".arrow") or name.startswith("train-") for name in names) > num_files:
            return
        time.sleep(0.002)


@pytest.mark.parametrize(("recipe", "num_kills"), [("copied", 10), ("decoded by workers", 1)])
def test_a_stream_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, recipe, num_kills):
    """One output killed several times; moments are drawn in files, beyond the last kill; seed 0."""
    archive = layouts.imagenet21k(tmp_path / "in", gzipped=True, images=NUM_IMAGES // 4)
    names = ["n00000010", "n00000020", "n00000030", "n00000040"]
    (archive.parent / "list").write_text("".join(f"{name}\n" for name in names))
    finish(start(archive, tmp_path / "expected", recipe))
    expected, output = files_of(tmp_path / "expected"), tmp_path / "out"
    moments, at, kills = random.Random(0), 0, 0
    for attempt in range(40):  # a busy machine may let a build end before it is killed
        process = start(archive, output, recipe)
        at += moments.randrange(2, 6)
        wait_for_progress(output, process, at)
        time.sleep(moments.uniform(0.0, 0.02))
        kill = os.killpg if attempt % 2 else os.kill
        kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:
            shutil.rmtree(output)
            at = kills = 0
        if kills == num_kills:
            break
    assert kills == num_kills, "the moments were too late to disturb anything"
    assert not (output / "manifest.json").exists()
    text = finish(start(archive, output, recipe))
    assert files_of(output) == expected
    assert "lay there from an earlier start" in text and f"{NUM_IMAGES} images" in text
