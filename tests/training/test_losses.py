"""Losses against torch's."""

import pytest
import torch
import torch.nn.functional as F

from training.losses import sigmoid_cross_entropy, soft_targets, softmax_cross_entropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator) * 3
    return logits, torch.randint(0, 5, (7,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_softmax_is_torchs_cross_entropy(batch, smoothing):
    logits, labels = batch
    ours = softmax_cross_entropy(logits, soft_targets(labels, 5, smoothing))
    theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_sigmoid_is_summed_over_classes_and_averaged_over_images(batch):
    logits, labels = batch
    targets = soft_targets(labels, 5)
    p = torch.sigmoid(logits.double())
    reference = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 7
    ours = sigmoid_cross_entropy(logits, targets)
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)


def test_soft_targets_are_distributions():
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.2)
    expected = torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_half_precision_logits_are_reduced_in_fp32(batch, loss):
    logits, labels = batch
    rounded = logits.bfloat16()
    targets = soft_targets(labels, 5)
    value = loss(rounded, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(rounded.float(), targets), rtol=0, atol=0)
