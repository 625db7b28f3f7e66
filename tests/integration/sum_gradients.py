"""Started by tests as a rank: what known gradients sum up to, into `summed-N.json`.

Every rank has 1.0 as the gradient of one bias, rank 0 has 256.0; what DeepSpeed makes of that is
noted for each ZeRO stage and `zero.sum_precision`.
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)

import json
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch.slurm_env import set_rank_variables


def main() -> None:
    """Build an engine for each case and look at one backward pass."""
    set_rank_variables(os.environ)
    from pretrain.deepspeed_import import import_deepspeed

    import_deepspeed()
    import torch
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    from configs.load import load_config
    from configs.schema import PretrainConfig
    from models.zoo import Architecture
    from pretrain.engine import build_engine
    from pretrain.plan import Ranks, make_plan
    from pretrain.process import set_up_process
    from training import processes

    rank, world_size = processes.rank(), processes.world_size()
    found = {}
    for stage in (1, 2, 3):
        for sums in ("fp32", "same"):
            words = [*sys.argv[1:], "--zero.stage", str(stage), "--zero.sum-precision", sums]
            config = load_config(PretrainConfig, words, "sum_gradients").config
            plan = make_plan(config, Ranks(rank, world_size, rank, world_size))
            if not dist.is_initialized():
                set_up_process(plan)
            architecture = Architecture.from_config(config.model, plan.num_classes)
            engine = build_engine(plan, architecture, "bf16")
            bias = engine.module.norm.bias
            bias.register_hook(lambda gradient: torch.full_like(gradient, 1.0 if rank else 256.0))
            images = torch.zeros(plan.micro_images, 3, *architecture.image_px).bfloat16()
            engine.backward(engine(images).float().sum())
            found[f"{stage} {sums}"] = safe_get_full_grad(bias).tolist()
            engine.step()
            engine.destroy()
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / f"summed-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    # The groups of so many engines, left by one rank after the other, abort a process now and then.
    os._exit(0)


if __name__ == "__main__":
    main()
