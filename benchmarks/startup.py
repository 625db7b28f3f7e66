"""From the command to the first step: how much of it is ours, beside torch and deepspeed.

    python benchmarks/startup.py [--runs 5] [--json FILE]

Contestants, one process each, from its start until its first optimizer step has ended:
- vitrain: `python launch/pretrain.py` on a small dataset, until its journal has the first step;
- bare: a script that imports torch and deepspeed, joins a process group and makes one step with
  a transformer of torch's own;
- help: `python launch/pretrain.py --help`, until it has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import (  # noqa: E402
    ROOT,
    circumstances,
    compare,
    medians,
    write_json,
)
from launch.slurm_env import free_port  # noqa: E402

ENTRY = ROOT / "launch" / "pretrain.py"
TIMEOUT_SECONDS = 300

BARE = """
import torch, deepspeed, sys, time
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(verbose=False)
layer = torch.nn.TransformerEncoderLayer(32, 2, 128, batch_first=True)
options = {"train_batch_size": 16, "zero_optimization": {"stage": 1}, "steps_per_print": 10**9}
engine, *_ = deepspeed.initialize(
    model=layer, optimizer=torch.optim.AdamW(layer.parameters()), config=options
)
engine.backward(engine(torch.randn(16, 65, 32, device=engine.device)).square().mean())
engine.step()
print(time.time())
"""


def vitrain(shards: Path) -> float:
    """Seconds until the journal of a small run has its first step."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *"--model.image-px 8 --model.patch-px 2 --model.width 32 --model.depth 1".split(),
            *"--model.heads 2 --schedule.total-steps 1 --logging.every-steps 1".split(),
            *("--batch.global-images", "16", "--tracking.no-enabled"),
            *("--data.train", str(shards), "--run-dir", folder),
        ]
        started = time.time()
        run([str(ENTRY), *arguments])
        first = (Path(folder) / "metrics.jsonl").read_text().splitlines()[0]
        return json.loads(first)["time"] / 1000 - started


def bare(_shards: Path) -> float:
    """Seconds until a minimal DeepSpeed script has made its first step."""
    started = time.time()
    return float(run(["-c", BARE]).split()[-1]) - started


def help(_shards: Path) -> float:
    """Seconds that `--help` takes."""
    started = time.time()
    run([str(ENTRY), "--help"])
    return time.time() - started


def run(arguments: list[str]) -> str:
    """Run Python alone in its process group; gives what it printed."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **alone, "MASTER_PORT": str(free_port())},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


CONTESTANTS = {function.__name__: function for function in (vitrain, bare, help)}


def main() -> None:
    """Measure, print a summary, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each contestant, in turn")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps({"seconds": CONTESTANTS[options.only](options.shards)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        from data_pipeline.build import build_dataset

        shards = Path(folder) / "digits"
        build_dataset("digits", None, "train", shards, progress=False)
        results = compare(
            __file__,
            list(CONTESTANTS),
            ["--shards", str(shards)],
            runs=options.runs,
            timeout_seconds=TIMEOUT_SECONDS,
        )
    summary = medians(results)
    ours, theirs = summary["vitrain"]["seconds"], summary["bare"]["seconds"]
    report = {
        **{f"{name}.seconds": numbers["seconds"] for name, numbers in summary.items()},
        "vitrain.seconds_over_bare": ours - theirs,
        "runs": results,
        **circumstances(["torch", "deepspeed", "timm"]),
    }
    print(
        f"first step after {ours:.1f} s, of which a bare torch + deepspeed script takes "
        f"{theirs:.1f} s: {ours - theirs:+.1f} s; --help takes {summary['help']['seconds']:.1f} s "
        f"(medians of {options.runs} runs)"
    )
    write_json(options.json, report)


if __name__ == "__main__":
    main()
