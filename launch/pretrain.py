"""Pretrain a Vision Transformer: the one script behind every way to start it.

    deepspeed --num_gpus 8 launch/pretrain.py --config configs/pretrain/vit_b16_in21k.yaml
    torchrun --nproc-per-node 8 launch/pretrain.py --config ...
    srun python launch/pretrain.py --config ...        # what `python -m launch.submit` does
    python launch/pretrain.py --config ...             # one process

    python launch/pretrain.py --inspect RUN        # status and checkpoints, checked
    python launch/pretrain.py --export-only RUN    # weights out of the newest checkpoint
    python launch/pretrain.py --validate --config ...  # everything, two steps long

docs/pretraining.md says how to resume, and whom to signal to stop.
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)
import os
import sys
from pathlib import Path

# A script's own folder comes first on the path, and there `import pretrain` would find this file.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import io
import logging
import signal
from collections.abc import Sequence

from configs.command_line import EXIT_FINISHED, EXIT_REFUSED, run_command
from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import PretrainConfig
from launch.slurm_env import set_rank_variables
from training import processes
from training.console import setup_logging
from training.preemption import STOP_SIGNALS, install_stop_handlers

EXIT_FAILED = 1
VALIDATE = "--validate"


def main(argv: Sequence[str]) -> int:
    """Train; every rank sees the same input and refuses it alike, but only rank 0 says so."""
    set_rank_variables(os.environ)
    install_stop_handlers(watch_parent=True)
    try:
        return _pretrain([word for word in argv if not word.startswith("--local_rank=")])
    except RefusedInput:
        if processes.is_main():
            raise
        return EXIT_REFUSED
    finally:
        # When the first rank leaves, launchers signal the others, which are about to leave, too.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _pretrain(argv: Sequence[str]) -> int:
    # Everything that can be wrong with the input is found before torch is imported.
    from pretrain.plan import Ranks, make_plan
    from pretrain.resume import check_start
    from pretrain.saved_run import serve

    if (answer := serve(argv)) is not None:
        if processes.is_main():
            sys.stdout.write(f"{answer}\n")
        return EXIT_FINISHED
    ranks = Ranks(
        rank=processes.rank(),
        world_size=processes.world_size(),
        local_rank=processes.local_rank(),
        local_world_size=processes.local_world_size(),
    )
    if VALIDATE in argv:
        from launch.validation.command import run_validation

        return run_validation([word for word in argv if word != VALIDATE], ranks)
    with contextlib.redirect_stdout(sys.stdout if ranks.is_main else io.StringIO()):
        loaded = load_config(PretrainConfig, argv, "launch/pretrain.py")
    plan = make_plan(loaded.config, ranks, loaded.config_file)
    nothing_to_do = check_start(plan)
    if nothing_to_do is not None:
        if ranks.is_main:
            sys.stdout.write(f"{nothing_to_do}\n")
        return EXIT_FINISHED

    setup_logging(plan.run_dir, ranks.is_main)
    from pretrain.deepspeed_import import import_deepspeed

    import_deepspeed()
    from pretrain.failures import TrainingStopped
    from pretrain.loop import pretrain

    try:
        return pretrain(plan)
    except TrainingStopped as stopped:
        # Rank 0's log has the sentence already; a traceback would bury it.
        logging.getLogger(__name__).debug("stopped", exc_info=stopped)
        return EXIT_FAILED


if __name__ == "__main__":
    run_command(main)
