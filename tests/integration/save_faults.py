"""Runs of one rank whose saves meet faults, each in a forked process, and what became of them.

    save_faults.py FOLDER OPTIONS...

Writes a JSON line for each fault: what it was, how the process ended, the status that it left, the
newest complete checkpoint then, and how the next start, without the fault, ended. The first line is
an undisturbed run. Forks spare the many starts the imports.
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.load import load_config
from configs.schema import PretrainConfig
from launch.slurm_env import set_rank_variables
from pretrain.deepspeed_import import import_deepspeed

import_deepspeed()
import safetensors.torch
import torch

from pretrain import loop, state_files
from pretrain.failures import TrainingStopped
from pretrain.plan import Ranks, make_plan
from pretrain.resume import check_start
from training.checkpoint_store import CheckpointStore
from training.console import setup_logging

FAULT_STEP = 8  # its save meets the fault; the one of step 4 is complete
RUN_SECONDS = 120

folder, options = Path(sys.argv[1]), sys.argv[2:]


class Crashing:
    """Lets a number of calls that touch the disk through, then ends as kill -9 does."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        for module, name in (
            (os, "mkdir"),
            (os, "rename"),
            (os, "replace"),
            (os, "fsync"),
            (shutil, "rmtree"),
            (torch, "save"),
            (state_files, "save_file"),
        ):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable) -> Callable:
        def call(*arguments, **named):
            self.left -= 1
            if self.left < 0:
                half_write(arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call


def half_write(arguments: tuple) -> None:
    """Leave the first bytes of a file of tensors, if that was to be written."""
    for path in arguments:
        if isinstance(path, Path) and path.suffix in (".pt", ".safetensors"):
            path.write_bytes(b"half of it")


def crash_after(calls: int) -> Callable[[Path], None]:
    return lambda _run: Crashing(calls) and None


def fill_the_disk(run: Path) -> None:
    """Leave no room for a checkpoint on the small file system that the folder is."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def lose_permission(run: Path) -> None:
    (run / "checkpoints").chmod(0o555)


def damage(suffix: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change a file of the newest checkpoint after the run, which ends by itself at its save."""

    def after(run: Path) -> None:
        path = next((run / "checkpoints" / f"step-{FAULT_STEP:08d}").glob(f"*{suffix}"))
        path.write_bytes(change(path.read_bytes()))

    return after


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def train(run: Path, before_fault_step: Callable[[Path], None] | None, last_step: bool) -> int:
    """Run in this process; `last_step` ends it, killed, once the faulty step's save is complete."""
    set_rank_variables(os.environ)
    config = load_config(PretrainConfig, [*options, "--run-dir", str(run)], "test").config
    plan = make_plan(config, Ranks(0, 1, 0, 1))
    check_start(plan)
    setup_logging(run, True)
    plain = loop.train_step

    def stepped(training):
        if before_fault_step and training.step == FAULT_STEP - 1:
            loop.finish_saving(training)
            before_fault_step(run)
        if last_step and training.step == FAULT_STEP:
            loop.finish_saving(training)
            os.kill(os.getpid(), signal.SIGKILL)
        plain(training)

    loop.train_step = stepped
    try:
        return loop.pretrain(plan)
    except TrainingStopped:
        return 1


def in_child(run: Path, fault: Callable[[Path], None] | None, last_step: bool = False) -> int:
    """Train in a forked process; gives its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        signal.alarm(RUN_SECONDS)
        code = 70
        try:
            log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = train(run, fault, last_step)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(name: str, run: Path, code: int) -> dict:
    newest = CheckpointStore(run / "checkpoints").newest_complete()
    status = json.loads((run / "status.json").read_text())
    found = {"fault": name, "code": code, "state": status["state"], "reason": status.get("reason")}
    again = in_child(run, None)
    result = run / "result.json"
    sha256 = json.loads(result.read_text())["weights_sha256"] if result.exists() else None
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    log = run.with_suffix(".log").read_text()
    shutil.rmtree(run)  # the file system is small
    found |= {"newest": newest and newest.step, "again": again, "sha256": sha256, "left": left}
    return {**found, "log": log}


def outcomes() -> Iterator[dict]:
    run = folder / "undisturbed"
    yield outcome("none", run, in_child(run, None))
    for calls in range(100):
        run = folder / f"crash-{calls}"
        code = in_child(run, crash_after(calls))
        yield outcome(f"crash {calls}", run, code)
        if code == 0:  # all calls of the rest of the run went through
            break
    for name, fault in (("full", fill_the_disk), ("permission", lose_permission)):
        run = folder / name
        code = in_child(run, fault)
        (folder / "filler").unlink(missing_ok=True)
        (run / "checkpoints").chmod(0o755)
        yield outcome(name, run, code)
    for suffix, what, change in (
        (".safetensors", "truncated", lambda data: data[: len(data) // 2]),
        (".safetensors", "flipped", flipped),
        (".pt", "flipped", flipped),
        ("marker.json", "flipped", flipped),
        (".pt", "empty", lambda _data: b""),
    ):
        run = folder / f"{what}{suffix}"
        code = in_child(run, None, last_step=True)
        damage(suffix, change)(run)
        yield outcome(f"{what} {suffix}", run, code)


assert safetensors.torch.save_file is state_files.save_file
for found in outcomes():
    print(json.dumps(found), flush=True)  # noqa: T201
