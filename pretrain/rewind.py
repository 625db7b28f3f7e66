"""Going back to the checkpoint before a trouble, and around its images."""

from __future__ import annotations

import logging

from pretrain.agreement import on_main
from pretrain.checkpoint import finish_saving, restore
from pretrain.failures import TrainingStopped
from pretrain.state import Training
from training.console import ProgressLine

logger = logging.getLogger(__name__)


def rewind(training: Training) -> None:
    """Go back because of `training.health.trouble`; a collective.

    Raises:
        TrainingStopped: The run went back too often, or has no checkpoint from before.
    """
    trouble = training.health.begin_rewind()
    finish_saving(training)
    store = training.store
    found = on_main(lambda: store.newest_complete(up_to_step=trouble.step))
    if found is None:
        raise TrainingStopped(
            f"{trouble.reason} There is no checkpoint of step {trouble.step} or before to go back "
            "to: lower optim.lr, set optim.clip_norm, or save more often (checkpoint.every_steps)"
        )
    logger.warning(
        "%s Going back from step %d to %s; positions %d to %d will be passed over (%d of %d times)",
        trouble.reason,
        training.step,
        found.folder,
        trouble.start,
        trouble.stop - 1,
        len(training.health.rewinds),
        training.health.config.max_rewinds,
    )
    on_main(lambda: store.set_aside_after(found.step))
    restore(training, found)
    training.loader.skip_to(training.position)
    training.progress.close()
    training.progress = ProgressLine(training.plan.total_steps, training.step)
    training.write_status("running")
