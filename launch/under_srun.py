"""Start another script as one of srun's ranks, with the variables that torchrun would set.

    srun python launch/under_srun.py finetune/run.py --task pets ...

(`launch/pretrain.py` reads Slurm's variables itself.)
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from typing import NoReturn

from configs.command_line import run_command
from configs.errors import RefusedInput
from launch.slurm_env import set_rank_variables


def main(argv: Sequence[str]) -> NoReturn:
    """Become that script, so that signals and its exit code are its own."""
    if not argv:
        raise RefusedInput(
            "give a script and its options: launch/under_srun.py finetune/run.py ..."
        )
    set_rank_variables(os.environ)
    os.execv(sys.executable, [sys.executable, "-u", *argv])


if __name__ == "__main__":
    run_command(main)
