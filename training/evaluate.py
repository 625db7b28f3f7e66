"""Scores over a whole evaluation set: every image counted exactly once, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

LossKind = Literal["softmax", "sigmoid"]

MAX_CONFUSION_CLASSES = 1024
"""Above this many classes no confusion matrix is kept (int64: 8 MiB at this size)."""


@dataclass(frozen=True)
class Evaluation:
    """Scores, as fractions from 0 to 1; the same on every rank.

    Attributes:
        top1: Share of images whose class has the highest logit.
        top5: Share of images whose class is among the min(5, C) highest logits.
        per_class: Top-1 of each class, float64 of shape (C,); nan for a class without images.
        mean_per_class: Mean of `per_class` over the classes that have images.
        loss: Mean loss of an image.
        num_images: Images scored, padding left out.
        num_broken: Images left out because they cannot be read; known to who loads them.
        confusion: Counts [true class, predicted class], int64 of shape (C, C); None where C is
            above `MAX_CONFUSION_CLASSES`.
        real_top1: Share of images whose highest logit is of any class that counts as right; None
            unless the labels say which do.
        num_real_images: Images for which some class counts as right.
    """

    top1: float
    top5: float
    per_class: torch.Tensor
    mean_per_class: float
    loss: float
    num_images: int
    confusion: torch.Tensor | None
    real_top1: float | None = None
    num_real_images: int = 0
    num_broken: int = 0


def evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    num_classes: int,
    device: torch.device | str,
    distributed: bool,
    loss_kind: LossKind = "softmax",
) -> Evaluation:
    """Score a model on all batches of all ranks.

    Equal logits are ranked by class number, so a model that says nothing (a zero head) scores what
    its class 0 deserves, not 100 %. An image with a logit that is not a number counts as wrong.

    Args:
        forward: From images (B, ...) on `device` to logits (B, C); the model is in eval mode.
        batches: Images and labels (B,) int64; label -1 marks padding. Labels (B, 1 + K) have
            beside it K more classes that count as right, filled up with -1. Where the forward pass
            is a collective (ZeRO 3), every rank must bring the same number of batches.
        num_classes: C.
        device: Where to compute, and where the process group can reduce.
        distributed: Add up over the ranks of torch.distributed; a collective.
        loss_kind: Softmax cross-entropy, or sigmoid cross-entropy summed over classes.
    """
    counts = _Counts(num_classes, device)
    # Not inference_mode: its tensors cannot be used outside it, and both ZeRO-3 (which gathers
    # weights here that training goes on with) and loader threads do.
    with torch.no_grad():
        for images, labels in batches:
            logits = forward(images.to(device, non_blocking=True))
            counts.add(logits, labels.to(device), loss_kind)
        if distributed:
            counts.add_up_ranks()
    return counts.scores()


class _Counts:
    """Running sums: integers for what is counted, float64 for the loss, so ranks add up exactly."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        self.num_classes = num_classes
        # Rows: images, top-1 hits, top-5 hits; per true class.
        self.hits = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.confusion: torch.Tensor | None = None
        if num_classes <= MAX_CONFUSION_CLASSES:
            cells = num_classes * num_classes
            self.confusion = torch.zeros(cells, dtype=torch.int64, device=device)
        # Images that have classes that count as right, and hits among them.
        self.real = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss_kind: str) -> None:
        is_image = (labels if labels.ndim == 1 else labels[:, 0]) >= 0
        logits, labels = logits[is_image].float(), labels[is_image]
        if labels.ndim == 2:
            self._add_real(logits, labels[:, 1:])
            labels = labels[:, 0]
        place = place_of_label(logits, labels)
        seen = torch.stack([torch.ones_like(place), place == 0, place < 5]).to(torch.int64)
        self.hits.index_add_(1, labels, seen)
        self.loss += _losses(logits, labels, loss_kind).double().sum()
        if self.confusion is not None:
            cells = labels * self.num_classes + logits.argmax(dim=1)
            self.confusion += torch.bincount(cells, minlength=self.confusion.numel())

    def _add_real(self, logits: torch.Tensor, accepted: torch.Tensor) -> None:
        is_hit = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for column in accepted.T:
            is_hit |= (place_of_label(logits, column.clamp(min=0)) == 0) & (column >= 0)
        self.real += torch.stack([(accepted >= 0).any(dim=1).sum(), is_hit.sum()])

    def add_up_ranks(self) -> None:
        for tensor in (self.hits, self.loss, self.confusion, self.real):
            if tensor is not None:
                torch.distributed.all_reduce(tensor)

    def scores(self) -> Evaluation:
        images, top1, top5 = self.hits.double().cpu()
        per_class = top1 / images  # 0 / 0 gives nan: a class without images has no score
        num_images = int(images.sum())
        confusion = self.confusion
        num_real_images, real_hits = self.real.tolist()
        return Evaluation(
            top1=_ratio(top1, num_images),
            top5=_ratio(top5, num_images),
            per_class=per_class,
            mean_per_class=float(per_class.nanmean()),
            loss=_ratio(self.loss, num_images),
            num_images=num_images,
            confusion=None
            if confusion is None
            else confusion.cpu().view(self.num_classes, self.num_classes),
            real_top1=real_hits / num_real_images if num_real_images else None,
            num_real_images=num_real_images,
        )


def place_of_label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Place of each image's class in the order of its logits, 0 = highest; (B,) int64."""
    own = logits.gather(1, labels[:, None])
    # "not at most" instead of "above", so that a comparison with nan counts against the class
    above = ~(logits <= own)
    class_numbers = torch.arange(logits.shape[1], device=logits.device)
    equal_but_earlier = (logits == own) & (class_numbers < labels[:, None])
    return (above | equal_but_earlier).sum(dim=1)


def _losses(logits: torch.Tensor, labels: torch.Tensor, loss_kind: str) -> torch.Tensor:
    if loss_kind == "softmax":
        return F.cross_entropy(logits, labels, reduction="none")
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def _ratio(per_class_sum: torch.Tensor, num_images: int) -> float:
    return float(per_class_sum.sum()) / num_images if num_images else float("nan")
