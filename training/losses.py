"""Losses on soft targets (a distribution over classes) and on sets of verified classes."""

import torch
import torch.nn.functional as F


def soft_targets(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """One-hot targets with `smoothing` of their weight spread evenly over all classes.

    Args:
        labels: Class numbers, int64 of shape (batch,).
        num_classes: Number of classes C.
        smoothing: Share that is spread, 0 to 1.

    Returns:
        float32 of shape (batch, C); rows sum to 1.
    """
    # Not F.one_hot: its int64 takes three times the memory, and on a CPU it looks at the labels.
    hard = torch.zeros((len(labels), num_classes), dtype=torch.float32, device=labels.device)
    hard.scatter_(1, labels[:, None], 1.0)
    return hard * (1.0 - smoothing) + smoothing / num_classes


def softmax_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of softmax(logits) against (batch, C) targets, mean over images; a scalar.

    Computed in fp32 whatever the logits' precision.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    return -(targets * log_probabilities).sum(dim=-1).mean()


def sigmoid_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each class, summed over classes, mean over images; a scalar.

    Computed in fp32 whatever the logits' precision.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.sum(dim=-1).mean()


def known_targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and mask of labels of which some are not known.

    Args:
        labels: int8 (batch, C): 1 verified to be there, 0 verified to be absent, -1 unknown.

    Returns:
        k-hot targets and the mask of known classes, float32 (batch, C), both 0 where unknown.
    """
    return (labels > 0).to(torch.float32), (labels >= 0).to(torch.float32)


def masked_sigmoid_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy summed over the known classes, mean over images; a scalar.

    Args:
        logits: (batch, C); computed in fp32 whatever their precision.
        labels: int8 (batch, C) as for `known_targets`; unknown classes have no loss, no gradient.
    """
    targets, mask = known_targets(labels)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    # Not a product: an infinite logit of an unknown class would make it nan.
    return torch.where(mask > 0, losses, 0.0).sum(dim=-1).mean()
