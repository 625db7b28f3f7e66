"""Pretraining from start to end, in the order in which things happen."""

from __future__ import annotations

from configs.command_line import EXIT_FINISHED
from pretrain.checkpoint import finish_saving, save_when_due
from pretrain.evaluation import evaluate, evaluation_is_due
from pretrain.export import export
from pretrain.plan import Plan
from pretrain.report import report
from pretrain.rewind import rewind
from pretrain.session import open_training
from pretrain.state import Training
from pretrain.step import train_step
from training.preemption import EXIT_SAVED, stop_requested


def pretrain(plan: Plan) -> int:
    """Train to the last step, or until asked to stop; a collective. Returns the exit code."""
    with open_training(plan) as training:
        return train(training)


def train(training: Training) -> int:
    """Step, report, evaluate and save until the last step or a stop; then export."""
    plan, config = training.plan, training.plan.config
    if training.evaluation_pending:  # the process before this one was stopped in it
        evaluate(training)
        if training.evaluation_pending:
            return EXIT_SAVED
    while training.step < plan.total_steps:
        train_step(training)
        step = training.step
        said = training.step_vote.cast(stop_requested() is not None, training.saver.written)
        if plan.is_due(config.logging.every_steps, step):
            report(training)
        if training.health.trouble is not None:
            rewind(training)
            continue
        training.evaluation_pending = evaluation_is_due(plan, step)
        if training.evaluation_pending and not said.stop:
            evaluate(training)
        stop = said.stop or training.evaluation_pending
        is_due = stop or plan.is_due(config.checkpoint.every_steps, step)
        save_when_due(training, is_due=is_due, saves_written=said.saves_written)
        if stop and not training.is_finished:
            finish_saving(training)
            return EXIT_SAVED
    finish_saving(training)
    export(training)
    return EXIT_FINISHED
