"""Opening a run and leaving it, whatever the reason: folder, lock, status, journal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist

from configs.errors import RefusedInput
from configs.load import to_yaml
from data_pipeline.broken import reset_quarantine
from pretrain.agreement import on_main
from pretrain.checkpoint import find_checkpoint, finish_saving, load_checkpoint
from pretrain.failures import TrainingStopped
from pretrain.plan import Plan
from pretrain.process import choose_precision, set_up_process
from pretrain.quarantine import quarantine_file
from pretrain.state import Training, build_training
from pretrain.watchdog import Watchdog
from tracking.provenance import command_line, environment_record
from training.checkpoint_store import CheckpointStore
from training.console import TOLD_AT_EXIT
from training.precision import Precision
from training.preemption import stop_requested
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)


@contextmanager
def open_training(plan: Plan) -> Iterator[Training]:
    """A run ready for its next step: built, or resumed from its newest checkpoint; a collective.

    On leaving, the run folder's status says how: finished (the loop wrote it), saved, or failed.

    Raises:
        RefusedInput: The folder is in use, or its checkpoint is that of another run.
    """
    folder = RunFolder(plan.run_dir, plan.ranks.is_main)
    with _joined(plan) as device, ExitStack() as stack:
        precision = choose_precision(plan, device)
        on_main(lambda: stack.enter_context(folder.lock()))
        training = _build_or_resume(plan, folder, device, precision)
        try:
            _begin(training)
            yield training
            _leave(training)
        except BaseException as error:
            if isinstance(error, TrainingStopped | RefusedInput):
                _finish_saving_if_possible(training)
            _fail(training, error)
            raise


@contextmanager
def _joined(plan: Plan) -> Iterator[torch.device]:
    """This process, joined with the other ranks; leaves them when all come to the end together."""
    device = set_up_process(plan)
    try:
        yield device
    except RefusedInput:
        # Raised on all ranks. A group that nobody leaves has threads of its own, which abort the
        # process at its exit now and then, and with it the exit code.
        dist.destroy_process_group()
        raise
    # Rank 0 has flushed its journal by now; where one rank's end ends the others, nothing is lost.
    dist.barrier()
    dist.destroy_process_group()


def _build_or_resume(
    plan: Plan, folder: RunFolder, device: torch.device, precision: Precision
) -> Training:
    options = plan.config.checkpoint
    store = CheckpointStore(
        folder.checkpoints,
        keep=options.keep,
        milestone_every_steps=options.milestone_every_steps,
    )
    found = find_checkpoint(store, plan, precision)
    training = build_training(plan, folder, store, device, precision)
    if found is not None:
        load_checkpoint(training, found)
    return training


def _finish_saving_if_possible(training: Training) -> None:
    """Keep a checkpoint that was being written; all ranks stop together, so this collective may."""
    try:
        finish_saving(training)
    except TrainingStopped as failure:
        logger.error("%s", failure)


def _begin(training: Training) -> None:
    plan, folder = training.plan, training.folder
    if plan.ranks.is_main:
        reset_quarantine(quarantine_file(training), training.broken.values())
        folder.write_start_files(to_yaml(plan.config), command_line(), environment_record())
    training.write_status("running")
    _watch(training)
    training.begin()
    for dataset, context in ((plan.train, "train"), (plan.validation, "validation")):
        if dataset is not None and not training.resumed_from_steps:
            training.tracked.log_dataset(dataset.manifest.name, dataset.digest, context)
    for notice in plan.notices:
        logger.warning("%s", notice)
    logger.info(
        "%d steps of %d images (%d ranks x %d micro steps x %d) on %s in %s, ZeRO %d; %s images",
        plan.total_steps,
        plan.config.batch.global_images,
        plan.ranks.world_size,
        plan.accumulation_steps,
        plan.micro_images,
        training.device,
        training.precision,
        plan.config.zero.stage,
        f"{plan.train.num_images:,}",
    )


def _watch(training: Training) -> None:
    """Let the process end when training no longer moves; one rank says why."""
    seconds = training.plan.config.health.stall_seconds
    if seconds is None:
        return

    def on_stall(reason: str) -> None:
        logging.getLogger().error("stalled at step %d: %s", training.step, reason)
        # Rank 0 may be the one that hangs: whoever reports writes.
        folder = RunFolder(training.plan.run_dir)
        resumed = {"resumed_from_steps": training.resumed_from_steps}
        folder.write_status("failed", training.step, reason=f"stalled: {reason}", **resumed)

    ranks = training.plan.ranks
    training.watchdog = Watchdog(
        training.plan.run_dir, ranks.rank, ranks.world_size, seconds, on_stall
    )


def _leave(training: Training) -> None:
    if training.is_finished:
        training.end("FINISHED")
        return
    reason = _why_stopped()
    logger.info("stopped at step %d (%s); start again to go on", training.step, reason)
    training.write_status("saved", reason=reason)
    training.end("KILLED")


def _why_stopped() -> str:
    """What the first rank that was asked to stop was told; a collective."""
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, stop_requested())
    told = [f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason]
    assert told, "a stop is agreed on only when a rank was asked to"
    return told[0]


def _fail(training: Training, error: BaseException) -> None:
    extra = TOLD_AT_EXIT if isinstance(error, RefusedInput) else None
    reason = f"{type(error).__name__}: {error}"
    logger.error("failed at step %d: %s", training.step, reason, extra=extra)
    training.write_status("failed", reason=reason)
    training.end("FAILED")
