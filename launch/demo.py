"""`make demo`: pretrain on fractals, transfer to handwritten digits, compare with scratch.

Nothing here trains: it starts the same commands that a real run uses, one after the other, and
prints what they measured, read from each run's result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# `python launch/demo.py` would find launch/pretrain.py under the name of the package pretrain.
sys.path[0] = str(ROOT)

from configs.command_line import run_command  # noqa: E402
from configs.errors import RefusedInput  # noqa: E402
from tracking.store import ui_command  # noqa: E402

SHARDS = Path("datasets/fractals/train")
PRETRAIN_CONFIG = Path("configs/pretrain/vit_ti4_fractals_demo.yaml")
PRETRAIN = Path("runs/demo-pretrain")
FINETUNE = Path("runs/demo-finetune")
SCRATCH = Path("runs/demo-scratch")
CPU_RANKS = 2


@dataclass(frozen=True)
class Stage:
    """One command of the demo and the result it leaves.

    Attributes:
        title: What the user reads while it runs.
        command: Program and arguments, run from the repository root.
        result: JSON file that the command writes when it has finished.
    """

    title: str
    command: tuple[str, ...]
    result: Path


def stages(num_gpus: int, extra: Sequence[str] = ()) -> list[Stage]:
    """The demo's four commands, for a machine with `num_gpus` GPUs (0: two CPU ranks).

    `extra` goes to all three training commands (tests shorten them so).
    """
    python = sys.executable
    launcher = str(Path(python).with_name("deepspeed"))
    ranks = num_gpus or CPU_RANKS
    pretrain = ("launch/pretrain.py", "--config", str(PRETRAIN_CONFIG), "--run-dir", str(PRETRAIN))
    finetune = (python, "finetune/run.py", "--task", "digits", *extra)
    build = "-m data_pipeline.build --source fractals --split train --output"
    return [
        Stage(
            "1/4  shards of 100 fractal classes",
            (python, *build.split(), str(SHARDS)),
            SHARDS / "manifest.json",
        ),
        Stage(
            f"2/4  pretraining with DeepSpeed ZeRO-1 on {ranks} ranks",
            (launcher, "-q", "--num_gpus", str(ranks), *pretrain, *extra),
            PRETRAIN / "result.json",
        ),
        Stage(
            "3/4  digits from the pretrained weights",
            (*finetune, "--pretrained", str(PRETRAIN), "--run-dir", str(FINETUNE)),
            FINETUNE / "result.json",
        ),
        Stage(
            "4/4  digits from scratch, same steps",
            (*finetune, "--pretrained", "scratch", "--run-dir", str(SCRATCH)),
            SCRATCH / "result.json",
        ),
    ]


def run_stage(stage: Stage, variables: Mapping[str, str] | None = None) -> float:
    """Run one stage in the foreground, with `variables` added to its environment.

    Returns:
        Seconds it took.

    Raises:
        RefusedInput: The command failed or left no result; its own message stands above.
    """
    sys.stdout.write(f"\n== {stage.title}\n$ {shlex.join(_shown(stage.command))}\n")
    sys.stdout.flush()
    began = time.monotonic()
    environment = {**os.environ, **(variables or {})}
    code = subprocess.run(stage.command, cwd=ROOT, env=environment, check=False).returncode
    # The exit code of the `deepspeed` launcher does not tell; the result file does.
    if code or not (ROOT / stage.result).exists():
        raise RefusedInput(
            f"the demo stopped: {stage.title!r} ended with exit code {code}"
            f"{'' if (ROOT / stage.result).exists() else f' and without {stage.result}'}; "
            "`make demo` goes on where it stopped, `make demo AGAIN=1` starts anew"
        )
    return time.monotonic() - began


def _shown(command: Sequence[str]) -> list[str]:
    return [Path(command[0]).name, *command[1:]]


def comparison(pretrain: dict, finetuned: dict, scratch: dict) -> str:
    """The table that ends the demo, from the three result.json files."""
    rows = [
        ("fractals, then digits", pretrain["steps"], finetuned),
        ("digits from scratch", 0, scratch),
    ]
    lines = [
        "start                    pretrain steps   finetune steps   test top-1   seconds",
        "----------------------   --------------   --------------   ----------   -------",
    ]
    for name, pretrain_steps, result in rows:
        lines.append(
            f"{name:<22}   {pretrain_steps:>14}   {result['steps']:>14}"
            f"   {result['test']['top1']:>10.1%}   {result['seconds']:>7.0f}"
        )
    gain = 100 * (finetuned["test"]["top1"] - scratch["test"]["top1"])
    lines.append(f"\nPretraining on fractals changed digits' top-1 by {gain:+.1f} points.")
    return "\n".join(lines)


def _gpu_count() -> int:
    # Asked in a process of its own: torch takes seconds to import and the stages do it themselves.
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the demo and print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__)
    parser.add_argument(
        "--again", action="store_true", help="remove the demo's three run folders first"
    )
    options = parser.parse_args(argv)
    if options.again:
        for folder in (PRETRAIN, FINETUNE, SCRATCH):
            shutil.rmtree(ROOT / folder, ignore_errors=True)
    num_gpus = _gpu_count()
    # Said outright, or each of DeepSpeed's processes warns that it found no GPU.
    variables = {} if num_gpus else {"DS_ACCELERATOR": "cpu"}
    seconds = [run_stage(stage, variables) for stage in stages(num_gpus)]
    results = [
        json.loads((ROOT / folder / "result.json").read_text())
        for folder in (PRETRAIN, FINETUNE, SCRATCH)
    ]
    sys.stdout.write(f"\n{comparison(*results)}\n")
    sys.stdout.write(f"This took {sum(seconds):.0f} s. Compare the runs in the MLflow UI:\n")
    sys.stdout.write(f"  {ui_command(None)}\n")
    return 0


if __name__ == "__main__":
    run_command(main)
