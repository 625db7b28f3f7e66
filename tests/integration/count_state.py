"""Started by tests as a rank: counts the bytes that it holds, into `counted-N.json`."""

# ruff: noqa: E402 (the path is set before anything of ours is imported)

import json
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch.slurm_env import set_rank_variables


def main() -> None:
    """Count one step of the run that the options describe."""
    set_rank_variables(os.environ)
    from pretrain.deepspeed_import import import_deepspeed

    import_deepspeed()
    from configs.load import load_config
    from configs.schema import PretrainConfig
    from pretrain.plan import Ranks, make_plan
    from pretrain.session import open_training
    from tests.pretrain.live_state import count_one_step
    from training import processes

    config = load_config(PretrainConfig, sys.argv[1:], "count_state").config
    rank, world_size = processes.rank(), processes.world_size()
    plan = make_plan(config, Ranks(rank, world_size, rank, world_size))
    with open_training(plan) as training:
        parameters = list(training.engine.module.parameters())
        sizes = [getattr(p, "ds_numel", p.numel()) for p in parameters]
        counted = {**count_one_step(training), "sizes": sizes}
        training.step = plan.total_steps
    (plan.run_dir / f"counted-{rank}.json").write_text(json.dumps(counted))


if __name__ == "__main__":
    main()
