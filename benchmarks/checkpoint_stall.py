"""How long a save holds training up, against writing the same bytes while training waits.

    python benchmarks/checkpoint_stall.py [--size b] [--rounds 5] [--json FILE]

In turn, on the state of one ViT in one process:
- vitrain: `pretrain.saver.Saver`, whose thread writes while steps are being made; counted is how
  long training stands still, from the beginning of the save and at its end.
- plain: the same files written, flushed and digested while training waits.
- deepspeed: `engine.save_checkpoint`, flushed to disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import circumstances, write_json  # noqa: E402
from launch.slurm_env import set_rank_variables  # noqa: E402


def in_background(training: Any, make_step: Callable[[], None]) -> tuple[float, float]:
    """Seconds that training stood still, and that writing took."""
    saver = training.saver
    saver.start(training.step, {}, {})
    while not saver.is_written(saver.written):
        make_step()
    _, times = saver.finish()
    return times.stall, times.write


def waiting(training: Any) -> float:
    """Seconds of a save that training waits for, of the same files."""
    started = time.perf_counter()
    training.saver.start(training.step, {}, {})
    training.saver.finish()
    return time.perf_counter() - started


def by_deepspeed(training: Any, folder: Path) -> float:
    """Seconds of DeepSpeed's own save, flushed to disk as ours is."""
    started = time.perf_counter()
    training.engine.save_checkpoint(str(folder), tag="benchmark", save_latest=False)
    for path in (folder / "benchmark").iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder / "benchmark")
    return seconds


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], int]:
    """Seconds of every round of each contestant, and the bytes of a checkpoint."""
    from configs.load import load_config
    from configs.schema import PretrainConfig
    from data_pipeline.build import build_dataset
    from pretrain.plan import Ranks, make_plan
    from pretrain.session import open_training
    from pretrain.step import train_step

    build_dataset("digits", None, "train", folder / "digits", progress=False)
    arguments = [
        *f"--model.size {options.size} --model.image-px 32 --model.patch-px 16".split(),
        *f"--batch.global-images 4 --zero.stage {options.zero}".split(),
        *"--schedule.total-steps 1000000 --tracking.no-enabled --precision bf16".split(),
        *("--data.train", str(folder / "digits"), "--run-dir", str(folder / "run")),
    ]
    config = load_config(PretrainConfig, arguments, "checkpoint_stall").config
    seconds: dict[str, list[float]] = {"stall": [], "write": [], "plain": [], "deepspeed": []}
    with open_training(make_plan(config, Ranks(0, 1, 0, 1))) as training:
        train_step(training)
        for number in range(options.rounds + 1):  # the first of each is not counted
            stall, write = in_background(training, lambda: train_step(training))
            plain = waiting(training)
            theirs = by_deepspeed(training, folder)
            if number:
                for name, value in zip(seconds, (stall, write, plain, theirs), strict=True):
                    seconds[name].append(value)
        newest = max((folder / "run" / "checkpoints").glob("step-*"))
        size = sum(path.stat().st_size for path in newest.iterdir())
        training.step = training.plan.total_steps
    return seconds, size


def main() -> None:
    """Measure, print a summary, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="b", help="of the model: ti, s, b, l")
    parser.add_argument("--zero", type=int, default=1, help="ZeRO stage")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each")
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args()
    set_rank_variables(os.environ)
    from pretrain.deepspeed_import import import_deepspeed

    import_deepspeed()
    with tempfile.TemporaryDirectory() as folder:
        seconds, size = measure(options, Path(folder))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        **{f"{name}_seconds": value for name, value in medians.items()},
        "stall.over_plain": medians["stall"] / medians["plain"],
        "stall.over_deepspeed": medians["stall"] / medians["deepspeed"],
        "checkpoint_bytes": size,
        "rounds": seconds,
        **circumstances(["torch", "deepspeed", "safetensors"]),
    }
    print(
        f"{size / 1e9:.2f} GB: training stands still for {medians['stall']:.2f} s "
        f"({medians['write']:.2f} s of writing beside it); a save that it waits for takes "
        f"{medians['plain']:.2f} s, DeepSpeed's {medians['deepspeed']:.2f} s: "
        f"{report['stall.over_plain']:.0%} and {report['stall.over_deepspeed']:.0%}"
    )
    write_json(options.json, report)


if __name__ == "__main__":
    main()
