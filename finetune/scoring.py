"""Scores of the model on the validation or the test part."""

from __future__ import annotations

from dataclasses import replace

import torch

from data_pipeline.augment import normalise
from data_pipeline.loader import EvalLoader
from data_pipeline.real_labels import RealLabels, batches_with_real_labels
from finetune.quarantine import settle_evaluation
from finetune.state import TransferState
from training.evaluate import Evaluation, evaluate


def score(
    state: TransferState, images: EvalLoader, real_labels: RealLabels | None = None
) -> Evaluation:
    """Score the model as it is on every image once, over all processes; a collective.

    Raises:
        RefusedInput: Too many of the images are broken; on all processes.
    """

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return state.model(normalise(batch, state.start.mean, state.start.std))

    state.model.eval()
    device = state.accelerator.device
    with state.meter.pause():
        scores = evaluate(
            forward,
            batches_with_real_labels(images, device, real_labels),
            num_classes=state.start.architecture.num_classes,
            device=device,
            distributed=state.accelerator.num_processes > 1,
        )
    return replace(scores, num_broken=settle_evaluation(state, images))
