"""finetune/run.py with a signal after a step, for tests.

    drive_finetune.py '{"signal": "SIGTERM", "after_step": 6, "on_rank": 1}' OPTIONS...

`after_step` counts over all learning rates. `record`: folder for what each step was trained on, a
file per rank with (position, row, digest of the pixels) lines.
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.command_line import run_command
from finetune.run import main

drive = json.loads(sys.argv.pop(1))
rank = int(os.environ.get("RANK", "0"))


def signal_after_step(take_step):
    def driven(state):
        outcome = take_step(state)
        if state.progress.total_step == drive["after_step"] and rank == drive.get("on_rank", rank):
            os.kill(os.getpid(), getattr(signal, drive["signal"]))
        return outcome

    return driven


def record(take_batch):
    log = (Path(drive["record"]) / f"rank-{rank}.jsonl").open("a")

    def driven(loader):
        batch = take_batch(loader)
        pixels = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
        for line in zip(batch.positions.tolist(), batch.rows.tolist(), pixels, strict=True):
            log.write(json.dumps(line) + "\n")
        log.flush()
        return batch

    return driven


if "signal" in drive or "record" in drive:
    import finetune.loop
    from data_pipeline.loader import TrainLoader

    if "signal" in drive:
        finetune.loop.take_step = signal_after_step(finetune.loop.take_step)
    if "record" in drive:
        TrainLoader.__next__ = record(TrainLoader.__next__)
run_command(main)
