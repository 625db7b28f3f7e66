"""From one learning rate to the next."""

from __future__ import annotations

import logging

from finetune.scores import SPOKEN, Scores, main_score
from finetune.start import StateDict, copy_of_weights
from finetune.state import TransferState

logger = logging.getLogger(__name__)


def finish_candidate(state: TransferState, scores: Scores) -> None:
    """Record the learning rate's validation result, keep its weights if best, prepare the next."""
    progress, peak = state.progress, state.progress.peak
    progress.validation_broken = scores.num_broken
    name, score = main_score(scores)
    if progress.finish_candidate(score):
        state.chosen = copy_of_weights(state.bare_model())
    if len(progress.learning_rates) > 1:
        logger.info("learning rate %g: validation %s %.2f %%", peak, SPOKEN[name], 100 * score)
    _return_to_start(state)


def give_up_candidate(state: TransferState) -> None:
    """Leave a learning rate whose gradient is no longer finite, and prepare the next."""
    logger.warning(
        "learning rate %g diverged at step %d: it is out", state.progress.peak, state.progress.step
    )
    state.progress.finish_candidate(None)
    _return_to_start(state)


def put_weights(state: TransferState, weights: StateDict) -> None:
    """Give the model these weights, wherever it is."""
    state.bare_model().load_state_dict(weights)


def _return_to_start(state: TransferState) -> None:
    put_weights(state, state.start.weights)
    state.optimizer.state.clear()  # the momentum
    if not state.progress.is_done:
        state.loader.skip_to(0)
