"""Few-shot linear probe: a ridge regression on frozen features, solved in closed form.

Source: the authors' published code (google-research/big_vision, evaluators/fewshot_lsr.py). It
whitens with the mean and the deviation of the chosen training images, adds a constant feature of
100 (so large that the ridge hardly holds it back: a bias), regresses on targets of -1 and 1 with a
ridge of 1024, and takes the class with the highest output. It differs in solving in float32 through
an eigendecomposition; here it is float64 and a Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray

from training.evaluate import place_of_label
from training.processes import of_all_ranks

BIAS_FEATURE = 100.0
_LEAST_DEVIATION = 1e-5
# Scores of so many images and all classes are in memory at once, in float64.
_IMAGES_AT_ONCE = 4096

Choices = Mapping[tuple[int, int], NDArray[np.int64]]
"""Rows of the training images by (images of each class, seed)."""

ByShots = dict[int, list[float]]
"""Accuracy as fractions, by images of each class and then by seed."""


@dataclass(frozen=True)
class Features:
    """Features of images, on the device that computed them.

    Attributes:
        values: float32 (images, width).
        labels: Class numbers, int64 (images,).
        rows: Which images they are of, int64 (images,).
    """

    values: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor

    def of_all_ranks(self) -> Features:
        """Those of every rank, by ascending row: alike at any number of ranks. A collective."""
        parts = (self.values, self.labels, self.rows)
        values, labels, rows = (of_all_ranks(part) for part in parts)
        order = rows.argsort()
        return Features(values[order], labels[order], rows[order])

    def of_rows(self, rows: NDArray[np.int64]) -> Features:
        """Those of the images that are among `rows`."""
        chosen = torch.isin(self.rows, torch.from_numpy(rows).to(self.rows.device))
        return Features(self.values[chosen], self.labels[chosen], self.rows[chosen])


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on whitened features; all float64.

    Attributes:
        mean: Of the training features, (width,).
        deviation: Of the training features, (width,).
        weight: (width + 1, classes); the last row belongs to the constant feature.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Outputs (images, classes) for features (images, width); the highest is the answer."""
        return _inputs(features, self.mean, self.deviation) @ self.weight


def collect_features(
    forward: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    device: torch.device | str,
) -> Features:
    """Features of all images of this rank's batches, padding left out.

    Args:
        forward: From images (B, ...) on `device` to features (B, width); in eval mode.
        batches: Images, labels (B,) and rows (B,); label -1 marks padding. Where the forward pass
            is a collective (ZeRO 3), every rank must bring the same number of batches, at least
            one.
        device: Where to compute.
    """
    parts = []
    with torch.no_grad():  # not inference_mode: see training.evaluate
        for images, labels, rows in batches:
            values = forward(images.to(device, non_blocking=True)).float()
            labels, rows = labels.to(device), rows.to(device)
            is_image = labels >= 0
            parts.append((values[is_image], labels[is_image], rows[is_image]))
    return Features(*(torch.cat(part) for part in zip(*parts, strict=True)))


def fit_probe(
    features: torch.Tensor, labels: torch.Tensor, *, num_classes: int, ridge: float
) -> LinearProbe:
    """The probe that training images determine; nothing in it is random or iterative.

    Args:
        features: (images, width); computed in float64 whatever their precision.
        labels: int64 (images,).
        num_classes: Outputs.
        ridge: Weight of the squared weights beside the sum of squared errors.
    """
    features = features.double()
    mean = features.mean(dim=0)
    deviation = features.std(dim=0, correction=0) + _LEAST_DEVIATION
    targets = 2.0 * F.one_hot(labels, num_classes).double() - 1.0
    return LinearProbe(
        mean, deviation, solve_ridge(_inputs(features, mean, deviation), targets, ridge)
    )


def solve_ridge(inputs: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """The W that minimises |X W - Y|^2 + ridge |W|^2, for X (n, d) and Y (n, c); W is (d, c).

    Primal, (X'X + ridge)^-1 X'Y, or dual, X'(XX' + ridge)^-1 Y, whichever inverts the smaller
    matrix. Inputs that are not numbers give a W of nan.
    """
    is_primal = inputs.shape[0] >= inputs.shape[1]
    gram = inputs.T @ inputs if is_primal else inputs @ inputs.T
    gram.diagonal().add_(ridge)
    # "_ex" raises nothing: one rank that left here alone would leave the others waiting.
    factor, _ = torch.linalg.cholesky_ex(gram)
    if is_primal:
        return torch.cholesky_solve(inputs.T @ targets, factor)
    return inputs.T @ torch.cholesky_solve(targets, factor)


def few_shot_top1(
    train: Features,
    test: Features,
    choices: Choices,
    *,
    num_classes: int,
    ridge: float,
    distributed: bool,
) -> ByShots:
    """Accuracy of each probe on all test images.

    Args:
        train: Of this rank's training images; all ranks' together hold every row of `choices`
            whose image can be read.
        test: Of this rank's test images; every image lies on one rank.
        choices: Which training images each probe is fit on.
        num_classes: Of the task.
        ridge: As for `fit_probe`.
        distributed: Put the ranks of torch.distributed together; a collective.
    """
    whole = train.of_all_ranks() if distributed else train
    counts = torch.zeros(len(choices), 2, dtype=torch.int64, device=test.values.device)
    for number, rows in enumerate(choices.values()):
        chosen = whole.of_rows(rows)
        if distributed:
            probe = _fit_on_one_rank(number, chosen, num_classes, ridge)
        else:
            probe = fit_probe(chosen.values, chosen.labels, num_classes=num_classes, ridge=ridge)
        counts[number] = _hits_and_images(probe, test)
    if distributed:
        dist.all_reduce(counts)
    scores: ByShots = {shots: [] for shots, _ in choices}
    for (shots, _), (hits, images) in zip(choices, counts.tolist(), strict=True):
        scores[shots].append(hits / images if images else float("nan"))
    return scores


def told(top1: ByShots) -> str:
    """Means over the seeds for a person, in percent, with the smallest and the largest."""
    percent = {shots: [100 * value for value in values] for shots, values in top1.items()}
    parts = [
        f"{shots} shot {mean(values):.2f} [{min(values):.2f}-{max(values):.2f}]"
        for shots, values in percent.items()
    ]
    return f"top-1 in %: {', '.join(parts)}"


def _fit_on_one_rank(number: int, chosen: Features, num_classes: int, ridge: float) -> LinearProbe:
    """Probe `number`, fit by the rank whose turn it is and given to all: exactly one probe."""
    owner = number % dist.get_world_size()
    if dist.get_rank() == owner:
        probe = fit_probe(chosen.values, chosen.labels, num_classes=num_classes, ridge=ridge)
    else:
        width = chosen.values.shape[1]
        shapes = ((width,), (width,), (width + 1, num_classes))
        device = chosen.values.device
        probe = LinearProbe(*(torch.empty(s, dtype=torch.float64, device=device) for s in shapes))
    # LAPACK's solutions lie column by column, and a broadcast moves memory as it lies.
    probe = LinearProbe(*(p.contiguous() for p in (probe.mean, probe.deviation, probe.weight)))
    for part in (probe.mean, probe.deviation, probe.weight):
        dist.broadcast(part, src=owner)
    return probe


def _hits_and_images(probe: LinearProbe, test: Features) -> torch.Tensor:
    hits = torch.zeros((), dtype=torch.int64, device=test.values.device)
    parts = (test.values.split(_IMAGES_AT_ONCE), test.labels.split(_IMAGES_AT_ONCE))
    for values, labels in zip(*parts, strict=True):
        hits += (place_of_label(probe.scores(values), labels) == 0).sum()
    return torch.stack([hits, torch.full_like(hits, len(test.labels))])


def _inputs(features: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Whitened features with the constant one behind them, float64 (images, width + 1)."""
    whitened = (features.double() - mean) / deviation
    return F.pad(whitened, (0, 1), value=BIAS_FEATURE)
