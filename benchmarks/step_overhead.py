"""What our training loop costs: its steps against a bare DeepSpeed loop on one fixed batch.

    python benchmarks/step_overhead.py [--ranks 2] [--blocks 12] [--json FILE]

Both loops drive the same engine (same model, optimizer, options), in turn, a block of steps each.
- vitrain: `pretrain.loop.train` with all it does at every step (learning rate, normalisation of
  bytes, soft targets, the check for numbers that are not finite, the vote to stop, throughput,
  shares of the time) and a log line with its metrics, norms included, every 50 steps. Decoding
  images and saving checkpoints are not in it.
- bare: forward, torch's cross-entropy, backward, step, on images that are normalised already.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import ROOT, circumstances, write_json  # noqa: E402
from launch.slurm_env import free_port, set_rank_variables  # noqa: E402

STEPS_PER_BLOCK = 50


class FixedBatch:
    """Stands where the loader does, and always has the same batch at once."""

    def __init__(self, loader: Any) -> None:
        """Take one batch of the real loader."""
        self.batch = next(loader)
        self.loader = loader

    def __next__(self) -> Any:
        """The batch."""
        return self.batch

    def copy_ahead(self, device: Any) -> None:
        """What the real loader does with its next batch."""
        self.batch.begin_copy(device)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real loader's."""
        return getattr(self.loader, name)


def save_nothing() -> None:
    """Let the product's loop leave out checkpoints and the export at its end."""
    from pretrain import loop

    loop.save_when_due = lambda *_, **__: None  # type: ignore[assignment]
    loop.finish_saving = loop.export = lambda _: None  # type: ignore[assignment]


def our_steps(training: Any, steps: int) -> None:
    """`steps` updates by the product's loop."""
    from pretrain import loop

    training.plan = dataclasses.replace(training.plan, total_steps=training.step + steps)
    loop.train(training)


def bare_steps(engine: Any, images: Any, labels: Any, steps: int) -> None:
    """`steps` updates as DeepSpeed's tutorial writes them."""
    from torch.nn.functional import cross_entropy

    for _ in range(steps):
        loss = cross_entropy(engine(images), labels)
        engine.backward(loss)
        engine.step()


def measure(shards: Path, folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of a step, for every block of either loop, on this rank."""
    import torch

    from configs.load import load_config
    from configs.schema import PretrainConfig
    from data_pipeline import normalise
    from pretrain.plan import Ranks, make_plan
    from pretrain.session import open_training
    from training import processes

    arguments = [
        *"--model.image-px 32 --model.patch-px 4 --model.width 128 --model.depth 6".split(),
        *"--model.heads 2 --schedule.total-steps 1000000 --tracking.no-enabled".split(),
        *("--batch.global-images", str(options.images * options.ranks)),
        *("--logging.every-steps", str(STEPS_PER_BLOCK)),
        *("--precision", options.precision, "--zero.stage", str(options.zero)),
        *("--data.train", str(shards), "--run-dir", str(folder / "run")),
    ]
    config = load_config(PretrainConfig, arguments, "step_overhead").config
    ranks = Ranks(processes.rank(), processes.world_size(), processes.local_rank(), options.ranks)
    save_nothing()
    times: dict[str, list[float]] = {"vitrain": [], "bare": []}
    with open_training(make_plan(config, ranks)) as training:
        training.loader = FixedBatch(training.loader)
        images, labels = training.loader.batch.to(training.device)
        ready = normalise(images, dtype=training.dtype)
        contestants = {
            "vitrain": lambda steps: our_steps(training, steps),
            "bare": lambda steps: bare_steps(training.engine, ready, labels, steps),
        }
        for steps in contestants.values():
            steps(10)
        for block in range(options.blocks):
            for name in list(contestants)[:: 1 if block % 2 else -1]:
                torch.distributed.barrier()
                started = time.perf_counter()
                contestants[name](STEPS_PER_BLOCK)
                if training.device.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append((time.perf_counter() - started) / STEPS_PER_BLOCK * 1000)
    return times


def start_ranks(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Build a small dataset, start the ranks on it, and read what rank 0 measured."""
    from data_pipeline.build import build_dataset

    shards = folder / "digits"
    build_dataset("digits", None, "train", shards, progress=False)
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(options.ranks),
                "LOCAL_WORLD_SIZE": str(options.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(options.ranks)
    ]
    try:
        if sum(rank.wait() != 0 for rank in ranks):
            raise SystemExit("a rank failed")
    finally:
        for rank in ranks:
            rank.kill()
    return json.loads((folder / "times.json").read_text())


def main() -> None:
    """Measure, print a summary, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="processes on this machine")
    parser.add_argument("--images", type=int, default=16, help="images of a rank's batch")
    parser.add_argument("--blocks", type=int, default=12, help=f"blocks of {STEPS_PER_BLOCK} steps")
    parser.add_argument("--zero", type=int, default=1, help="ZeRO stage")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        set_rank_variables(os.environ)
        times = measure(options.folder / "digits", options.folder, options)
        if os.environ["RANK"] == "0":
            (options.folder / "times.json").write_text(json.dumps(times))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the ranks end with this process
    with tempfile.TemporaryDirectory() as folder:
        times = start_ranks(options, Path(folder))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["vitrain"] / medians["bare"]
    report = {
        **{f"{name}.step_ms": value for name, value in medians.items()},
        "vitrain.over_bare": ratio,
        "steps_per_block": STEPS_PER_BLOCK,
        "blocks": times,
        **circumstances(["torch", "deepspeed", "timm"]),
    }
    print(
        f"vitrain {medians['vitrain']:.2f} ms, bare DeepSpeed {medians['bare']:.2f} ms a step "
        f"(medians of {options.blocks} blocks): {ratio - 1:+.1%}"
    )
    write_json(options.json, report)


if __name__ == "__main__":
    main()
