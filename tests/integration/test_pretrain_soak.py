"""Twenty kills at random moments, and the weights of a run that nobody touched."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.slurm_env import free_port
from tests.integration.pretrain_processes import (
    RUN_SECONDS,
    SCRIPT,
    environment,
    options,
    rank_environment,
    read_json,
    run_ranks,
    tiny_shards,
)

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(2400)]

KILLS = 20


def start(arguments: list[str]) -> list[subprocess.Popen[bytes]]:
    port = {"MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env={**environment(), **port, **rank_environment("launcher", rank, 2)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]


def kill_at_random(ranks: list[subprocess.Popen[bytes]], run: Path, chance: random.Random) -> bool:
    """Kill one rank: while it starts, or a moment after the run says that it goes on.

    Returns:
        Whether the rank was still alive to be killed.
    """
    starts = chance.random() < 0.2
    if starts:
        time.sleep(chance.uniform(0.0, 5.0))
    else:
        wait_until_running(ranks, run)
        time.sleep(chance.uniform(0.0, 1.5))
    victim = chance.choice(ranks)
    was_alive = victim.poll() is None
    victim.kill()
    if starts:  # before the ranks have met, it is the launcher that ends the others
        for rank in ranks:
            rank.kill()
    return was_alive


def wait_until_running(ranks: list[subprocess.Popen[bytes]], run: Path) -> None:
    """Until status.json says "running" anew, or a rank has ended."""
    started = time.time()
    while time.time() < started + RUN_SECONDS and all(rank.poll() is None for rank in ranks):
        path = run / "status.json"
        if path.exists() and path.stat().st_mtime > started and is_running(path):
            return
        time.sleep(0.01)


def is_running(path: Path) -> bool:
    return read_json(path)["state"] == "running"


@pytest.mark.parametrize("settings", [{"zero.stage": 1, "precision": "bf16"}], ids=["zero1-bf16"])
def test_twenty_random_kills_change_nothing(settings, tmp_path):
    base = {
        **settings,
        "data.train": tiny_shards(tmp_path / "train", (40, 37, 43), seed=0),
        "schedule.total-steps": 2500,
        "checkpoint.every-steps": 7,
        "logging.every-steps": 25,
    }
    ended = run_ranks(2, options({**base, "run-dir": tmp_path / "undisturbed"}), seconds=600)
    assert ended.codes == [0, 0], ended.texts
    expected = read_json(tmp_path / "undisturbed" / "result.json")

    run, chance, kills = tmp_path / "run", random.Random(0), 0
    arguments = options({**base, "run-dir": run})
    for _ in range(2 * KILLS):
        if kills == KILLS:
            break
        ranks = start(arguments)
        try:
            kills += kill_at_random(ranks, run, chance)
            # The other rank ends by itself, and promptly.
            assert all(rank.wait(timeout=60) is not None for rank in ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    assert kills == KILLS and not (run / "result.json").exists()

    ended = run_ranks(2, arguments, seconds=600)
    assert ended.codes == [0, 0], ended.texts
    result = read_json(run / "result.json")
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert len(result["resumed_from_steps"]) >= KILLS // 2
