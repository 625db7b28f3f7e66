"""`launch/pretrain.py --validate`: does everything a run does, small, and says what it needs."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack

from configs.command_line import EXIT_FINISHED
from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import PretrainConfig
from launch.shard_samples import read_some
from launch.validation.stages import StageFailed, Stages
from pretrain.plan import Plan, Ranks, make_plan
from training.console import setup_logging
from training.gpus import find_gpu, gpu_of_device
from training.preemption import STOP_SIGNALS
from training.run_folder import open_run_folder

EXIT_FAILED = 1
_PLANNED_GPU = "h100-80gb"


def run_validation(argv: Sequence[str], ranks: Ranks) -> int:
    """Validate what the options describe, with all ranks; gives the exit code.

    Nothing is written to the real run folder or to a tracking server.

    Raises:
        RefusedInput: Something in the input is wrong; the message names the stage.
    """
    for number in STOP_SIGNALS:  # nothing is worth saving
        signal.signal(number, signal.SIG_DFL)
    gpus, gpu, words = _take_planner_options(argv, ranks.world_size)
    stages = Stages(ranks.is_main)
    quiet = contextlib.redirect_stdout(sys.stdout if ranks.is_main else io.StringIO())
    with stages.stage("options"), quiet:
        loaded = load_config(PretrainConfig, words, "launch/pretrain.py --validate")
        if gpu is not None:
            find_gpu(gpu)
    with stages.stage("data"):
        plan = make_plan(loaded.config, ranks, loaded.config_file)
        for dataset in (plan.train, plan.validation):
            if dataset is not None:
                read_some(dataset)
    try:
        told = _run(plan, stages, gpus, gpu)
    except StageFailed as failure:
        # Each rank that fails has its own reason; a traceback only where nobody foresaw it.
        if failure.__cause__ is not None:
            traceback.print_exception(failure.__cause__)
        sys.stderr.write(f"error: {failure}\n")
        return EXIT_FAILED
    stages.say(f"validated: {', '.join(stages.passed)}\n\n{told}")
    return EXIT_FINISHED


def _run(plan: Plan, stages: Stages, gpus: int, gpu: str | None) -> str:
    """Go through the stages that train; gives what the full run would need."""
    setup_logging(None, plan.ranks.is_main)
    with stages.stage("imports"):
        from pretrain.deepspeed_import import import_deepspeed

        import_deepspeed()
        from deepspeed.accelerator import get_accelerator

        from launch.validation.needs import needs_text
        from launch.validation.small_run import small_plan
        from launch.validation.steps import run_stages
        from pretrain.session import open_training

        small = small_plan(plan, get_accelerator().device_name())
    is_main = plan.ranks.is_main
    if is_main:
        shutil.rmtree(small.run_dir, ignore_errors=True)  # of a validation that was killed
    try:
        with stages.stage("run folder"):
            open_run_folder(small.run_dir, resume="auto", is_main=is_main)
            setup_logging(small.run_dir, is_main)
        with ExitStack() as opened:
            with stages.stage("model"):
                training = opened.enter_context(open_training(small))
            measured = run_stages(training, stages)
            training.step = small.total_steps
        return needs_text(plan, small, measured, gpus, gpu or _own_gpu() or _PLANNED_GPU)
    finally:
        if is_main:
            shutil.rmtree(small.run_dir, ignore_errors=True)


def _take_planner_options(
    argv: Sequence[str], world_size: int
) -> tuple[int, str | None, list[str]]:
    """Number and kind of the GPUs to plan for, and the words that are left for the config."""
    words = list(argv)
    gpus = _take(words, "--gpus")
    if gpus is not None and (not gpus.isdecimal() or int(gpus) < 1):
        raise RefusedInput(f"--gpus {gpus}: give a whole number of at least 1")
    return int(gpus or world_size), _take(words, "--gpu"), words


def _own_gpu() -> str | None:
    """This machine's kind of GPU, if the planner knows it."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name())
    return gpu.name if gpu else None


def _take(words: list[str], option: str) -> str | None:
    """Remove an option and its value from the words; None if it is not there."""
    if option not in words:
        return None
    place = words.index(option)
    if place + 1 == len(words) or words[place + 1].startswith("--"):
        raise RefusedInput(f"{option}: expected a value after it")
    value = words[place + 1]
    del words[place : place + 2]
    return value
