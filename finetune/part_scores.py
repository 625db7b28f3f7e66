"""Scores of the model on the validation or the test part."""

from __future__ import annotations

from dataclasses import replace

import torch

from data_pipeline.augment import normalise
from data_pipeline.loader import EvalLoader
from data_pipeline.real_labels import RealLabels
from finetune.quarantine import settle_evaluation
from finetune.scores import Scores, score_images
from finetune.state import TransferState


def score(
    state: TransferState, images: EvalLoader, real_labels: RealLabels | None = None
) -> Scores:
    """Score the model as it is on every image once, over all processes; a collective.

    Raises:
        RefusedInput: Too many of the images are broken; on all processes.
    """

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return state.model(normalise(batch, state.start.mean, state.start.std))

    state.model.eval()
    with state.meter.pause():
        scores = score_images(
            forward,
            images,
            device=state.accelerator.device,
            distributed=state.accelerator.num_processes > 1,
            real_labels=real_labels,
        )
    return replace(scores, num_broken=settle_evaluation(state, images))
