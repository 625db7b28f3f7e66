"""Scores of either kind of task, and how they are named, recorded and told.

Images of one class each are scored by top-1 and top-5, images that show several by mean average
precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from data_pipeline.loader import EvalLoader
from data_pipeline.real_labels import RealLabels, batches_with_real_labels
from training.average_precision import MultiLabelEvaluation, evaluate_multi_label
from training.evaluate import Evaluation, LossKind, evaluate

SPOKEN = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "real_top1": "ReaL top-1",
    "mean_average_precision": "mean average precision",
}
"""What scores are called, by their names in metrics and result.json."""

Scores = Evaluation | MultiLabelEvaluation

# Attributes by their names in metrics and result.json; `None` is left out.
_SINGLE = ("top1", "top5", "mean_per_class", "real_top1", "loss")
_MULTI = ("mean_average_precision", "loss")


def score_images(
    forward: Callable[[torch.Tensor], torch.Tensor],
    images: EvalLoader,
    *,
    device: torch.device,
    distributed: bool,
    real_labels: RealLabels | None = None,
    loss_kind: LossKind = "softmax",
) -> Scores:
    """Score a model on every image once, over all processes; a collective.

    Args:
        forward: From images uint8 (B, 3, H, W) on `device` to logits; the model is in eval mode.
        images: This process's part.
        device: Where to compute.
        distributed: Whether there are other processes.
        real_labels: A second labelling of images that have one class each.
        loss_kind: Of images that have one class each.
    """
    num_classes = images.dataset.num_classes
    if images.dataset.is_multi_label:
        return evaluate_multi_label(
            forward,
            (batch.to(device) for batch in images),
            num_classes=num_classes,
            device=device,
            distributed=distributed,
        )
    return evaluate(
        forward,
        batches_with_real_labels(images, device, real_labels),
        num_classes=num_classes,
        device=device,
        distributed=distributed,
        loss_kind=loss_kind,
    )


def main_score(scores: Scores) -> tuple[str, float]:
    """Name and value (a fraction) of the one score by which models are compared."""
    if isinstance(scores, MultiLabelEvaluation):
        return "mean_average_precision", scores.mean_average_precision
    return "top1", scores.top1


def metrics_of(part: str, scores: Scores) -> dict[str, float]:
    """Metric names ("test/top1") and values of an evaluation."""
    values = {f"{part}/{name}": value for name, value in _values(scores).items()}
    return {**values, f"{part}/broken_images": float(scores.num_broken)}


def record_of(scores: Scores) -> dict[str, float]:
    """What result.json says of a test set; a value that is not a number is left out."""
    record = {name: v for name, v in _values(scores).items() if not math.isnan(v)}
    counts = {"images": scores.num_images, "broken_images": scores.num_broken}
    if isinstance(scores, MultiLabelEvaluation):
        return {**record, **counts, "known_labels": scores.num_known}
    real = {} if scores.real_top1 is None else {"real_images": scores.num_real_images}
    return {**record, **counts, **real}


def per_class_of(scores: Scores, classes: tuple[str, ...]) -> dict[str, float | None]:
    """Accuracy or average precision of each class; None where it has no (positive) images."""
    per_class = dict(zip(classes, scores.per_class.tolist(), strict=True))
    return {name: None if math.isnan(value) else value for name, value in per_class.items()}


def told(record: dict[str, Any]) -> str:
    """`record_of`, as a sentence."""
    parts = [
        f"{name} {100 * record[key]:.2f} %"
        for key, name in SPOKEN.items()
        if key in record and key != "real_top1"
    ]
    sentence = f"{', '.join(parts)} of {record['images']} images"
    if "real_top1" in record:
        real = f"ReaL top-1 {100 * record['real_top1']:.2f} % of {record['real_images']} images"
        sentence = f"{sentence}; {real}"
    return sentence


def _values(scores: Scores) -> dict[str, float]:
    names = _MULTI if isinstance(scores, MultiLabelEvaluation) else _SINGLE
    values = {name: getattr(scores, name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None}
