"""Real finetuning processes for tests: the digits task, a tiny model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.integration.pretrain_processes import Ended
from tests.integration.pretrain_processes import run_ranks as run_processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "finetune" / "run.py"
DRIVER = Path(__file__).with_name("drive_finetune.py")
RUN_SECONDS = 150  # the imports of torch and accelerate on a busy machine, and a few steps

TINY: dict[str, Any] = {
    "task": "digits",
    "pretrained": "scratch",
    "resolution": 8,
    "images-per-class": 6,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.patch-px": 4,
    "model.dropout": 0.1,  # so that the random state of each rank matters
    "precision": "fp32",
    "steps": 8,
    "warmup-steps": 2,
    "batch.global-images": 16,
    "evaluation.batch-images": 200,
    "checkpoint.every-steps": 3,
    "logging.every-steps": 1,
    "loader.threads": 1,
}


def options(changes: dict[str, Any]) -> list[str]:
    """Command-line options of the tiny run, with changes; a tuple gives several values."""
    words = ["--tracking.no-enabled"]
    for name, value in {**TINY, **changes}.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name}", *(str(part) for part in values)]
    return words


def run_ranks(
    world_size: int, arguments: Sequence[str], *, drive: dict[str, Any] | None = None
) -> Ended:
    """Start the processes and wait for all; those that do not end in time are killed."""
    return run_processes(
        world_size,
        arguments,
        drive=drive,
        started_by="alone" if world_size == 1 else "launcher",
        seconds=RUN_SECONDS,
        script=SCRIPT,
        driver=DRIVER,
        # Nothing is downloaded in tests, wherever they run.
        variables={"OMP_NUM_THREADS": "1", "https_proxy": "http://127.0.0.1:9"},
    )
