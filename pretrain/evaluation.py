"""What is measured while training goes on, each part when it is due."""

from __future__ import annotations

import logging

from pretrain.few_shot import probe, probe_is_due
from pretrain.plan import Plan
from pretrain.state import Training
from pretrain.validation import AskedToStop, validate

logger = logging.getLogger(__name__)


def evaluation_is_due(plan: Plan, step: int) -> bool:
    """Whether anything is measured after `step`."""
    return _validation_is_due(plan, step) or probe_is_due(plan, step)


def evaluate(training: Training) -> None:
    """Validate, and fit few-shot probes, as far as they are due; a collective.

    Asked to stop meanwhile, it leaves off within a batch or two, and `evaluation_pending` remains:
    an evaluation may take longer than a cluster waits before it kills.

    Raises:
        RefusedInput: Too many of the images are broken; on all ranks.
    """
    plan, step = training.plan, training.step
    try:
        if _validation_is_due(plan, step):
            validate(training)
        if probe_is_due(plan, step):
            probe(training)
    except AskedToStop:
        logger.info("leaving the evaluation of step %d for the next start", step)
        return
    training.evaluation_pending = False


def _validation_is_due(plan: Plan, step: int) -> bool:
    return plan.is_due(plan.config.evaluation.every_steps, step)
