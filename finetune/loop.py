"""The order in which things happen: each learning rate is trained from the same start."""

from __future__ import annotations

from finetune.candidates import finish_candidate, give_up_candidate
from finetune.checkpoint import save_checkpoint
from finetune.part_scores import score
from finetune.report import Reporter
from finetune.state import TransferState
from finetune.step import take_step
from training.preemption import stop_requested
from training.processes import any_rank


def train(state: TransferState, reporter: Reporter) -> str | None:
    """Try every learning rate that is left.

    Returns:
        Why it was asked to stop (everything is saved then), or None when all are tried.
    """
    config, progress, device = state.config, state.progress, state.accelerator.device
    while not progress.is_done:
        outcome = take_step(state)
        step, is_last = progress.step, progress.step == config.steps or outcome.has_diverged
        if is_last or step % config.logging.every_steps == 0:
            reporter.step(state, outcome)
        if outcome.has_diverged:
            give_up_candidate(state)
        elif is_last or step % config.evaluation.every_steps == 0:
            scores = score(state, state.validation)
            reporter.validation(state, scores)
            if is_last:
                finish_candidate(state, scores)
        stops = any_rank(stop_requested() is not None, device)
        if is_last or stops or step % config.checkpoint.every_steps == 0:
            save_checkpoint(state)
        if stops:
            return stop_requested() or "another process was told to stop"
    return None
