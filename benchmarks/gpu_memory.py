"""The planner's memory model against a real step's peak: ViT-B, L and H at several micro batches.

    python benchmarks/gpu_memory.py [--sizes b,l,h] [--micro 16,32,64] [--json FILE]
    DS_ACCELERATOR=cpu python benchmarks/gpu_memory.py --toy          # without a GPU

One process and one rank for each case: our engine makes three steps on one fixed batch, accumulated
twice. On a GPU the peak is torch.cuda.max_memory_allocated of the last two, and images/s is that of
the last; a case that does not fit is listed, and stops nothing. On a CPU it is the memory of all
tensors that the process makes (models.step_memory), of tiny models only, and there is no images/s.
Images are 224 px (--toy: 32 px, with a small bucket, which would hide all else).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import attempt, circumstances, write_json  # noqa: E402
from benchmarks.step_overhead import FixedBatch  # noqa: E402
from launch.slurm_env import set_rank_variables  # noqa: E402

STEPS = 3
TOY_BUCKET = "stage: pretrain\ndeepspeed: {zero_optimization: {reduce_bucket_size: 1000000}}\n"
TOY = "--model.image-px 32 --model.patch-px 4 --model.width 128 --model.depth 6 --model.heads 2"
PATCHES = {"s": 16, "b": 16, "l": 16, "h": 14}
TARGET_ERROR = 0.1


def arguments_of(case: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """The run's options, for a case named `size-micro-stage`."""
    size, micro_images, stage = case.split("-")
    config = folder / "toy.yaml"
    if options.toy:
        config.write_text(TOY_BUCKET)
    model = f"--model.size {size} --model.patch-px {PATCHES[size]}"
    return [
        *(("--config", str(config)) if options.toy else ()),
        *(TOY if options.toy else model).split(),
        *(
            "--batch.micro-images",
            micro_images,
            "--batch.global-images",
            str(2 * int(micro_images)),
        ),
        *("--zero.stage", stage, "--precision", options.precision),
        *("--model.checkpoint-blocks", str(options.checkpoint_blocks)),
        *("--schedule.total-steps", "1000", "--tracking.no-enabled", "--loader.threads", "2"),
        *("--data.train", str(folder / "digits"), "--run-dir", str(folder / f"run-{case}")),
    ]


def measure(case: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes of a step, and what the planner says of it."""
    set_rank_variables(os.environ)
    from pretrain.deepspeed_import import import_deepspeed

    import_deepspeed()
    import deepspeed
    import torch

    from configs.load import load_config
    from configs.schema import PretrainConfig
    from models.step_memory import LiveBytes
    from pretrain.plan import Ranks, make_plan
    from pretrain.session import open_training
    from pretrain.step import train_step

    config = load_config(PretrainConfig, arguments_of(case, folder, options), "gpu_memory").config
    plan = make_plan(config, Ranks(0, 1, 0, 1))
    is_gpu = deepspeed.get_accelerator().device_name() == "cuda"
    live = LiveBytes()
    # From the start on, because the weights count; not on a GPU, whose time it would spoil.
    with nullcontext() if is_gpu else live, open_training(plan) as training:
        training.loader = FixedBatch(training.loader)
        seconds = 0.0
        for step in range(STEPS):
            began = time.perf_counter()
            train_step(training)
            if is_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            if step == 0:  # the first step makes the optimizer's state
                live.peak = live.now
                if is_gpu:
                    torch.cuda.reset_peak_memory_stats()
        peak = torch.cuda.max_memory_allocated() if is_gpu else live.peak
        told = predict(training)
        training.step = plan.total_steps
    found = {"measured_bytes": peak, "told_bytes": told, "error": told / peak - 1}
    if is_gpu:
        found["images_per_second"] = config.batch.global_images / seconds
        found["gpu"] = torch.cuda.get_device_name()
    return found


def predict(training: Any) -> float:
    """What the planner says that this rank needs."""
    from configs.deepspeed_options import deepspeed_options
    from pretrain.activation_memory import Passes, probe_step
    from pretrain.state_memory import state_memory

    plan, config = training.plan, training.plan.config
    deepspeed = deepspeed_options(
        config,
        micro_images=plan.micro_images,
        accumulation_steps=plan.accumulation_steps,
        precision=training.precision,
    )
    parameters = training.engine.module.parameters()
    state = state_memory(
        [getattr(p, "ds_numel", p.numel()) for p in parameters],
        stage=config.zero.stage,
        world_size=1,
        deepspeed=deepspeed,
        average=config.optim.ema_decay is not None,
    )
    every = config.model.checkpoint_blocks
    passes = Passes(config, training.architecture, training.precision, every)
    probed = probe_step(
        passes,
        micro_images=plan.micro_images,
        device="meta",
        as_on_gpu=training.device.type == "cuda",
    )
    return float(max(state.in_backward + probed.peak, state.in_update))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sizes", default="b,l,h", help="rows of the size table (default b,l,h)")
    add("--micro", default="16,32,64", help="images of a forward pass (default 16,32,64)")
    add("--stages", default="1,2,3", help="ZeRO stages (default 1,2,3)")
    add("--precision", default="bf16", help="bf16 (default) or fp32")
    add("--checkpoint-blocks", type=int, default=0, help="activation checkpointing; 1: every block")
    add("--timeout", type=float, default=600, help="seconds that one case may take")
    add("--toy", action="store_true", help="a tiny model at 32 px, for a CPU; --sizes is ignored")
    add("--json", type=Path, help="file for the whole report")
    add("--only", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all cases and print them beside the planner's."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a child ends with this process
    if options.only:
        print(json.dumps(measure(options.only, options.folder, options)))
        return
    sizes = "b" if options.toy else options.sizes
    cases = [
        f"{size}-{micro}-{stage}"
        for size in sizes.split(",")
        for stage in options.stages.split(",")
        for micro in options.micro.split(",")
    ]
    with tempfile.TemporaryDirectory() as folder:
        from data_pipeline.build import build_dataset

        build_dataset("digits", None, "train", Path(folder) / "digits", progress=False)
        results = measure_all(cases, Path(folder), options)
    print_table(results)


def measure_all(
    cases: list[str], folder: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Each case in a process of its own; the report so far is written after each."""
    arguments = [f"--folder={folder}", f"--precision={options.precision}"]
    arguments += [f"--checkpoint-blocks={options.checkpoint_blocks}"]
    arguments += ["--toy"] if options.toy else []
    results = {}
    where = circumstances(["torch", "deepspeed", "timm"])
    for case in cases:
        found = attempt(__file__, case, arguments, timeout_seconds=options.timeout)
        results[case] = found
        write_json(options.json, {"cases": results, "precision": options.precision, **where})
    return results


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """What a page of docs shows, and the largest error."""
    print(
        "| size-micro-stage | told GiB | measured GiB | error | images/s |\n|---|---|---|---|---|"
    )
    for case, row in results.items():
        if "failed" in row:
            print(f"| {case} | | {row['failed']} | | |")
            continue
        rate = f"{row['images_per_second']:.0f}" if "images_per_second" in row else "-"
        print(
            f"| {case} | {row['told_bytes'] / 2**30:.3f} | {row['measured_bytes'] / 2**30:.3f} "
            f"| {row['error']:+.1%} | {rate} |"
        )
    errors = [row["error"] for row in results.values() if "error" in row]
    if errors:
        worst = max(errors, key=abs)
        reached = "reached" if abs(worst) <= TARGET_ERROR else "missed"
        print(f"largest error {worst:+.1%}; target {TARGET_ERROR:.0%}: {reached}")


if __name__ == "__main__":
    main()
