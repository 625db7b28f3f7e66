"""From options to a result: data, weights, training, test. Imports torch; `run.py` does not."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from accelerate import Accelerator

from configs.command_line import EXIT_FINISHED
from configs.errors import RefusedInput
from configs.load import flatten, to_yaml
from configs.schema import FinetuneConfig
from finetune.agreement import agreed
from finetune.checkpoint import resume
from finetune.loop import train
from finetune.report import Reporter
from finetune.results import TrainingDiverged, finish
from finetune.start import build_start
from finetune.state import (
    TransferState,
    build_state,
    launched_in_vain,
    leave_processes,
    make_accelerator,
)
from finetune.task_data import TaskData, open_task_data, prepare_shards
from finetune.tasks import TASKS
from tracking.lineage import resolve_weights
from tracking.provenance import command_line, environment_record
from tracking.run import TrackedRun, check_settings, start_run
from training.console import TOLD_AT_EXIT, setup_logging
from training.preemption import EXIT_SAVED
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)

EXIT_FAILED = 1


def transfer(config: FinetuneConfig) -> int:
    """Run a transfer, or go on with one; gives back the exit code.

    Raises:
        RefusedInput: Data, weights or run folder cannot be used; raised on all processes.
    """
    assert config.run_dir is not None
    accelerator = make_accelerator(config)
    folder = RunFolder(config.run_dir, accelerator.is_main_process)
    with ExitStack() as stack:
        stack.callback(leave_processes, accelerator)
        agreed(accelerator, lambda: stack.enter_context(folder.lock()))
        setup_logging(folder.path, accelerator.is_main_process)
        return _run(config, accelerator, folder)


def _run(config: FinetuneConfig, accelerator: Accelerator, folder: RunFolder) -> int:
    state = _prepare(config, accelerator, folder)
    with _start_tracking(state) as tracked:
        try:
            code = _train_and_finish(state, tracked)
        except TrainingDiverged as diverged:
            logger.error("%s", diverged)
            code = _fail(state, tracked, diverged)
        except BaseException as error:
            if isinstance(error, RefusedInput):
                logger.error("failed: %s", error, extra=TOLD_AT_EXIT)
            _fail(state, tracked, error)
            raise
    # Launchers end all processes when the first one leaves; the main one has sent its results now.
    accelerator.wait_for_everyone()
    return code


def _prepare(config: FinetuneConfig, accelerator: Accelerator, folder: RunFolder) -> TransferState:
    agreed(accelerator, lambda: check_settings(config.tracking))
    # Before the data, which may take minutes to download and to write as shards.
    resolved = agreed(
        accelerator,
        lambda: resolve_weights(config.pretrained, config.tracking.uri),
        main_first=True,
    )
    data = _open_data(config, accelerator)
    classes, device_type = data.train.num_classes, accelerator.device.type
    if notice := launched_in_vain():
        logger.warning(notice)
    start = agreed(accelerator, lambda: build_start(config, resolved, classes, device_type))
    state = build_state(config, accelerator, folder, data, start)
    resume(state)
    logger.info(
        "task %s: %d training, %d validation and %d test images of %d classes; input %dx%d; "
        "%d x %s, %s",
        config.task,
        *(part.num_images for part in (data.train, data.validation, data.test)),
        classes,
        *start.architecture.image_px,
        accelerator.num_processes,
        device_type,
        state.precision,
    )
    return state


def _open_data(config: FinetuneConfig, accelerator: Accelerator) -> TaskData:
    folders = agreed(
        accelerator, lambda: prepare_shards(config.task, config.data_dir), main_first=True
    )
    fraction = config.validation_fraction or TASKS[config.task].validation_fraction
    return agreed(
        accelerator,
        lambda: open_task_data(
            folders,
            validation_fraction=fraction,
            subset=config.subset,
            seed=config.seed,
            test_real_labels=config.test_real_labels,
        ),
    )


def _start_tracking(state: TransferState) -> TrackedRun:
    config, data = state.config, state.data
    state.folder.write_start_files(to_yaml(config), command_line(), environment_record())
    tracked = start_run(
        state.folder.path,
        config.tracking,
        stage="finetune",
        params=flatten(config),
        tags={"task": config.task, "pretrained": config.pretrained, **state.start.tags},
        is_main=state.accelerator.is_main_process,
    )
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    for context, part in parts.items():
        name = f"{part.manifest.name}-{part.manifest.split}"
        tracked.log_dataset(name, part.filter_digest or part.digest, context)
    return tracked


def _train_and_finish(state: TransferState, tracked: TrackedRun) -> int:
    state.folder.write_status("running", state.progress.total_step)
    reporter = Reporter(state, tracked)
    with state.loader:
        stopped = train(state, reporter)
    reporter.close()
    step = state.progress.total_step
    if stopped:
        logger.info("stopped by %s: saved at step %d; the same command goes on", stopped, step)
        state.folder.write_status("saved", step)
        tracked.close("KILLED")
        return EXIT_SAVED
    finish(state, tracked)
    state.folder.write_status("finished", step)
    return EXIT_FINISHED


def _fail(state: TransferState, tracked: TrackedRun, error: BaseException) -> int:
    told = str(error) or type(error).__name__
    state.folder.write_status("failed", state.progress.total_step, error=told)
    tracked.close("FAILED")
    return EXIT_FAILED
