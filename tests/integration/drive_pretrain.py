"""launch/pretrain.py with things happening to it: signals after a step, a loss that is no number.

    drive_pretrain.py '{"signal": "SIGTERM", "after_step": 6, "on_rank": 1}' OPTIONS...

Keys: `signal`, `after_step`, `on_rank`: send this process a signal when it has made that step.
`signal`, `before`, `on_rank`: the same when that function ("module:name") is first called.
`nan_at_step`, `on_rank`: spoil the loss of that step. `resave`: folder into which the state is
saved again before the first step. `record`: folder for what each step was
trained on, a file per rank with (step, rows, digest of the bytes) lines. `record_inputs`: the
same for what the model sees of each position, after mixup.
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)
import hashlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import pretrain.loop
import pretrain.step
from configs.command_line import run_command
from data_pipeline.loader import TrainLoader
from launch.pretrain import main
from pretrain.deepspeed_import import import_deepspeed
from training.checkpoint_store import CheckpointStore
from training.mixup import Mixup

import_deepspeed()
from pretrain.checkpoint import finish_saving, save_when_due
from pretrain.saver import Saver

drive = json.loads(sys.argv.pop(1))
rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0"))
is_driven = rank == drive.get("on_rank", rank)


def signal_after_step(train_step):
    def driven(training):
        train_step(training)
        if is_driven and training.step == drive["after_step"]:
            os.kill(os.getpid(), getattr(signal, drive["signal"]))

    return driven


def signal_before(place):
    module_name, name = place.split(":")
    module = importlib.import_module(module_name)
    plain = getattr(module, name)

    def driven(*arguments, **options):
        setattr(module, name, plain)
        if is_driven:
            os.kill(os.getpid(), getattr(signal, drive["signal"]))
        return plain(*arguments, **options)

    setattr(module, name, driven)


def spoil(loss_of):
    def driven(training, images, labels):
        loss = loss_of(training, images, labels)
        return loss * float("nan") if is_driven and training.step == drive["nan_at_step"] else loss

    return driven


def record(take_batch):
    log = (Path(drive["record"]) / f"rank-{rank}.jsonl").open("a")

    def driven(loader):
        batch = take_batch(loader)
        pixels = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
        rows = zip(batch.positions.tolist(), batch.rows.tolist(), pixels, strict=True)
        for line in rows:
            log.write(json.dumps(line) + "\n")
        log.flush()
        return batch

    return driven


def record_inputs(take_batch, mix):
    log = (Path(drive["record_inputs"]) / f"rank-{rank}.jsonl").open("a")
    positions = []

    def taken(loader):
        batch = take_batch(loader)
        positions[:] = batch.positions.tolist()
        return batch

    def mixed(mixup, values):
        result = mix(mixup, values)
        if values.ndim == 4:  # images; targets are mixed, too
            for position, image in zip(positions, result, strict=True):
                digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
                log.write(json.dumps([position, digest]) + "\n")
            log.flush()
        return result

    return taken, mixed


def resave(train):
    def driven(training):
        kept, training.saver = (
            training.saver,
            Saver(
                CheckpointStore(Path(drive["resave"])),
                training.tensors,
                training.plan.ranks.rank,
                training.plan.ranks.world_size,
            ),
        )
        save_when_due(training, is_due=True, saves_written=0)
        finish_saving(training)
        training.saver = kept
        return train(training)

    return driven


if "before" in drive:
    signal_before(drive["before"])
if "after_step" in drive:
    pretrain.loop.train_step = signal_after_step(pretrain.loop.train_step)
if "nan_at_step" in drive:
    pretrain.step._loss = spoil(pretrain.step._loss)
if "resave" in drive:
    pretrain.loop.train = resave(pretrain.loop.train)
if "record" in drive:
    TrainLoader.__next__ = record(TrainLoader.__next__)
if "record_inputs" in drive:
    TrainLoader.__next__, Mixup.__call__ = record_inputs(TrainLoader.__next__, Mixup.__call__)
run_command(main)
