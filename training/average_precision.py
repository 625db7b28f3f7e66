"""Scores of a model whose images show several classes, some of them not known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from training.losses import masked_sigmoid_cross_entropy
from training.processes import of_all_ranks


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Scores over a whole evaluation set; the same on every rank.

    Attributes:
        mean_average_precision: Mean of `per_class` over the classes that have positive images.
        per_class: Average precision of each class, float64 of shape (C,); nan without positives.
        loss: Mean loss of an image: binary cross-entropy summed over its known classes.
        num_images: Images of which at least one class is known.
        num_known: Pairs of image and class that were scored.
        num_broken: Images left out because they cannot be read; known to who loads them.
    """

    mean_average_precision: float
    per_class: torch.Tensor
    loss: float
    num_images: int
    num_known: int
    num_broken: int = 0


def evaluate_multi_label(
    forward: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    num_classes: int,
    device: torch.device | str,
    distributed: bool,
) -> MultiLabelEvaluation:
    """Score a model on all batches of all ranks; unknown classes count nowhere.

    Only the scores of known classes are kept (9 bytes each): with verified labels that is a
    handful an image, however many classes there are.

    Args:
        forward: From images (B, ...) on `device` to logits (B, C); the model is in eval mode.
        batches: Images and labels int8 (B, C): 1 there, 0 absent, -1 unknown. An image of which
            nothing is known is padding. Where the forward pass is a collective (ZeRO 3), every
            rank must bring the same number of batches.
        num_classes: C.
        device: Where to compute, and where the process group can gather.
        distributed: Put the ranks of torch.distributed together; a collective.
    """
    known = _Known(device)
    with torch.no_grad():  # not inference_mode: see training.evaluate
        for images, labels in batches:
            logits = forward(images.to(device, non_blocking=True)).float()
            known.add(logits, labels.to(device))
    sums, gathered = known.sums, known.pairs()
    if distributed:
        dist.all_reduce(sums)
        gathered = [of_all_ranks(values) for values in gathered]
    per_class = average_precision(*gathered, num_classes=num_classes)
    num_images = int(sums[0])
    return MultiLabelEvaluation(
        mean_average_precision=float(per_class.nanmean()),
        per_class=per_class,
        loss=float(sums[1]) / num_images if num_images else float("nan"),
        num_images=num_images,
        num_known=len(gathered[0]),
    )


class _Known:
    """Scores, class numbers and truth of the known pairs of image and class of one rank."""

    def __init__(self, device: torch.device | str) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # images, loss
        kinds = (torch.float32, torch.int32, torch.bool)
        self._parts = [[torch.empty(0, dtype=kind, device=device)] for kind in kinds]

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        is_known = labels >= 0
        values = (logits[is_known], is_known.nonzero()[:, 1].to(torch.int32), labels[is_known] > 0)
        for parts, value in zip(self._parts, values, strict=True):
            parts.append(value)
        is_image = is_known.any(dim=1)
        count = is_image.sum()
        if count > 0:
            loss = masked_sigmoid_cross_entropy(logits[is_image], labels[is_image])
            self.sums += torch.stack([count.double(), loss.double() * count])

    def pairs(self) -> list[torch.Tensor]:
        return [torch.cat(parts) for parts in self._parts]


def average_precision(
    scores: torch.Tensor, classes: torch.Tensor, is_positive: torch.Tensor, *, num_classes: int
) -> torch.Tensor:
    """Average precision of each class over scored pairs of image and class.

    The sum over distinct scores s of (recall at s - recall above s) x precision at s, as
    scikit-learn and torchmetrics define it: equal scores are one step. A score that is not a
    number ranks last.

    Args:
        scores: float32 (pairs,).
        classes: Class numbers, integers (pairs,).
        is_positive: bool (pairs,).
        num_classes: C.

    Returns:
        float64 (C,) on the CPU; nan for a class without positives.
    """
    scores = torch.nan_to_num(scores, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(classes[order], stable=True)]  # by class, then by falling score
    scores, classes, is_positive = scores[order], classes[order].long(), is_positive[order]
    pairs = torch.bincount(classes, minlength=num_classes)
    positives = torch.zeros(num_classes, dtype=torch.int64, device=scores.device)
    positives.index_add_(0, classes, is_positive.long())
    hits = torch.cumsum(is_positive.long(), 0)
    place = torch.arange(1, len(scores) + 1, device=scores.device)
    # Hits and places up to the last pair of each class, which the next class starts behind.
    hits_before = torch.cumsum(positives, 0) - positives
    pairs_before = torch.cumsum(pairs, 0) - pairs
    is_step = torch.ones_like(is_positive)
    is_step[:-1] = (scores[1:] != scores[:-1]) | (classes[1:] != classes[:-1])
    hits, place, classes = hits[is_step], place[is_step], classes[is_step]
    hits_of_class = hits - hits_before[classes]
    precision = hits_of_class.double() / (place - pairs_before[classes])
    gained = torch.diff(hits, prepend=hits.new_zeros(1)).double()
    sums = torch.zeros(num_classes, dtype=torch.float64, device=scores.device)
    sums.index_add_(0, classes, gained * precision)
    return (sums / positives).cpu()  # 0 / 0 gives nan: a class without positives has no score
