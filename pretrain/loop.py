"""Pretraining from start to end, in the order in which things happen."""

from __future__ import annotations

from configs.command_line import EXIT_FINISHED
from pretrain.checkpoint import save_checkpoint
from pretrain.export import export
from pretrain.plan import Plan
from pretrain.report import report
from pretrain.session import open_training
from pretrain.state import Training
from pretrain.step import train_step
from pretrain.validation import validate
from training.preemption import EXIT_SAVED, stop_requested


def pretrain(plan: Plan) -> int:
    """Train to the last step, or until asked to stop; a collective. Returns the exit code."""
    with open_training(plan) as training:
        return train(training)


def train(training: Training) -> int:
    """Step, report, evaluate and save until the last step or a stop; then export."""
    plan, config = training.plan, training.plan.config
    while training.step < plan.total_steps:
        train_step(training)
        step = training.step
        is_stopping = training.stop_vote.cast(stop_requested() is not None)
        if plan.is_due(config.logging.every_steps, step):
            report(training)
        if plan.is_due(config.evaluation.every_steps, step):
            validate(training)
        if is_stopping or plan.is_due(config.checkpoint.every_steps, step):
            save_checkpoint(training)
        if is_stopping and step < plan.total_steps:
            return EXIT_SAVED
    export(training)
    return EXIT_FINISHED
