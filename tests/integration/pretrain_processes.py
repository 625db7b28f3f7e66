"""Real pretraining processes for tests: a tiny model, tiny shards, ranks without a launcher."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.slurm_env import free_port
from tests.data_pipeline.sample_shards import encode, write_dataset

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "pretrain.py"
DRIVER = Path(__file__).with_name("drive_pretrain.py")
RUN_SECONDS = 150  # the imports of torch and deepspeed on a busy machine, and a few steps

TINY: dict[str, Any] = {
    "model.size": "ti",
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "model.patch-px": 4,
    "model.image-px": 16,
    "model.dropout": 0.1,  # so that the random state of each rank matters
    "data.streams": 6,
    "batch.global-images": 16,
    "batch.micro-images": 4,
    "schedule.total-steps": 12,
    "schedule.warmup-steps": 3,
    "checkpoint.every-steps": 4,
    "evaluation.every-steps": 6,
    "evaluation.batch-images": 8,
    "logging.every-steps": 3,
    "precision": "fp32",
    "loader.threads": 1,
}


def tiny_shards(folder: Path, shard_images: Sequence[int], seed: int) -> Path:
    """Noisy 16 px images of four classes, told apart by brightness."""
    generator = np.random.default_rng(seed)

    def image(number: int) -> bytes:
        noise = generator.integers(0, 20, (16, 16, 3), dtype=np.uint8)
        return encode(noise + np.uint8(number % 4 * 60))

    write_dataset(folder, [[image(i) for i in range(count)] for count in shard_images], 4)
    return folder


def options(changes: dict[str, Any]) -> list[str]:
    """Command-line options of the tiny run, with changes; None removes one.

    Nothing is sent to MLflow unless a change says where to.
    """
    values = {**TINY, **changes}
    values.setdefault("tracking.enabled", "tracking.uri" in changes)
    return [word for name, value in values.items() for word in _words(name, value)]


def _words(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        group, dot, field = name.rpartition(".")
        return [f"--{group}{dot}{field}" if value else f"--{group}{dot}no-{field}"]
    return [f"--{name}", str(value)]


@dataclass
class Ended:
    """How the ranks of one run ended: exit codes, and what each wrote to both streams."""

    codes: list[int]
    texts: list[str]


def environment() -> dict[str, str]:
    """This process's environment, with bytecode kept between the many starts of the tests."""
    variables = {**os.environ, "PYTHONPYCACHEPREFIX": str(ROOT / ".pytest_cache" / "bytecode")}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def rank_environment(started_by: str, rank: int, world_size: int) -> dict[str, str]:
    """What a launcher, `srun` or nobody ("alone") sets for a rank; all but the port."""
    rank_name, size_name = str(rank), str(world_size)
    if started_by == "alone":
        return {}
    if started_by == "srun":
        return {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": rank_name,
            "SLURM_LOCALID": rank_name,
            "SLURM_NTASKS": size_name,
            "SLURM_TASKS_PER_NODE": size_name,
        }
    return {
        "RANK": rank_name,
        "LOCAL_RANK": rank_name,
        "WORLD_SIZE": size_name,
        "LOCAL_WORLD_SIZE": size_name,
        "MASTER_ADDR": "127.0.0.1",
    }


def run_ranks(
    world_size: int,
    arguments: Sequence[str],
    *,
    drive: dict[str, Any] | None = None,
    started_by: str = "launcher",
    seconds: float = RUN_SECONDS,
    script: Path = SCRIPT,
    driver: Path = DRIVER,
    variables: Mapping[str, str] | None = None,
    first_ends_all: bool = False,
) -> Ended:
    """Start the ranks and wait for all of them; those that do not end in time are killed.

    `drive` starts `script` through `driver`, which does to the ranks what it says; `variables` are
    added to their environment. `first_ends_all` kills the others when rank 0 has ended, as
    launchers do sooner or later.
    """
    port = {} if started_by == "alone" else {"MASTER_PORT": str(free_port())}
    program = [str(script)] if drive is None else [str(driver), json.dumps(drive)]
    ranks = [
        subprocess.Popen(
            [sys.executable, *program, *arguments],
            env={
                **environment(),
                **port,
                **rank_environment(started_by, rank, world_size),
                **(variables or {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        texts = []
        for number, rank in enumerate(ranks):
            if number > 0 and first_ends_all:
                rank.kill()
            texts.append(rank.communicate(timeout=seconds)[0])
    finally:
        for rank in ranks:
            rank.kill()
    return Ended([rank.returncode for rank in ranks], texts)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder."""
    return json.loads(path.read_text(encoding="utf-8"))
