"""Real processes whose saves are killed at every point, or meet a disk that fails them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.pretrain_processes import environment, options, tiny_shards

DRIVER = Path(__file__).with_name("save_faults.py")
SMALL_MIB = 4  # of room: a few checkpoints of 200 KB, and no more than seconds to fill
DRIVER_SECONDS = 900.0
# Root writes wherever it wants unless it is told not to.
OBEY_PERMISSIONS = ("-dac_override,-dac_read_search",) * 2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.soak,
    pytest.mark.timeout(1000),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("setpriv"),
        reason="needs root, to mount a small disk, and setpriv",
    ),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each fault, by its name."""
    folder = tmp_path_factory.mktemp("save-faults")
    train = tiny_shards(folder / "train", (33, 27), seed=0)
    disk = folder / "disk"
    disk.mkdir()
    size = f"size={SMALL_MIB}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let root mount a file system")
    bounds, inherited = OBEY_PERMISSIONS
    try:
        ended = subprocess.run(
            [
                "setpriv",
                "--bounding-set",
                bounds,
                "--inh-caps",
                inherited,
                sys.executable,
                DRIVER,
                disk,
                *options({"data.train": train}),
            ],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DRIVER_SECONDS,
            check=False,
        )
    finally:
        subprocess.run(["umount", disk], check=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"fault"')]
    return {found["fault"]: found for found in map(json.loads, lines)}


def test_every_next_start_ends_with_the_weights_of_an_undisturbed_run(outcomes):
    expected = outcomes["none"]["sha256"]
    assert expected and len(outcomes) > 40
    for name, found in outcomes.items():
        assert (found["again"], found["sha256"]) == (0, expected), (name, found["log"])
        kept = {"latest", "step-00000008", "step-00000012"}
        # The last save of all is followed by none that could sweep up what it left behind.
        assert set(found["left"]) == kept or found["newest"] == 12, name


def test_a_process_killed_anywhere_in_a_save_leaves_the_checkpoint_before_it_or_the_new_one(
    outcomes,
):
    crashes = [found for name, found in outcomes.items() if name.startswith("crash")]
    assert crashes.pop()["code"] == 0, "the calls of the whole run were gone through"
    assert {found["code"] for found in crashes} == {-9}
    newest = [found["newest"] for found in crashes]
    assert newest == sorted(newest) and set(newest) == {4, 8, 12}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("full", "saving the checkpoint of step 8 failed on rank 0: OSError: [Errno 28] No space"),
        ("permission", "saving the checkpoint of step 8 failed on rank 0: PermissionError"),
    ],
)
def test_a_disk_that_fails_ends_the_run_with_a_sentence(outcomes, fault, says):
    found = outcomes[fault]
    assert (found["code"], found["newest"]) == (1, 4)
    assert says in found["log"] and "Traceback" not in found["log"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("truncated .safetensors", "state-00000.safetensors has "),
        ("flipped .safetensors", "state-00000.safetensors has changed since it was saved"),
        ("flipped .pt", "rank-00000.pt has changed since it was saved"),
        ("flipped marker.json", "marker.json "),
        ("empty .pt", "rank-00000.pt has 0 bytes instead of "),
    ],
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(outcomes, fault, says):
    found = outcomes[fault]
    assert found["newest"] == 4
    assert f"step-00000008: {says}" in found["log"]
