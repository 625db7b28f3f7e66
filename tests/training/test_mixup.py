"""Mixup against timm's arithmetic, its share against scipy's Beta, its partners over splits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from timm.data.mixup import Mixup as TimmMixup

from training.losses import (
    masked_sigmoid_cross_entropy,
    sigmoid_cross_entropy,
    soft_targets,
    softmax_cross_entropy,
)
from training.mixup import Mixup, Pairing, mixup_share, pairing

CLASSES = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 4, 4, generator=generator)
    logits = torch.randn(8, CLASSES, generator=generator) * 3
    return images, logits, torch.randint(0, CLASSES, (8,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("own", [Pairing(block=8, shift=4), Pairing(block=4, shift=2)])
def test_images_and_targets_are_timms(batch, own, smoothing, monkeypatch):
    images, _, labels = batch
    monkeypatch.setattr(np.random, "beta", lambda *_: 0.7)
    timms = TimmMixup(mixup_alpha=0.2, num_classes=CLASSES, label_smoothing=smoothing)
    mixup = Mixup(0.7, own)
    # timm mixes with the reversed batch: put partners at mirrored places, then back.
    partner = own.partners(torch.arange(8))
    first = torch.arange(8)[partner > torch.arange(8)]
    places = torch.cat([first, partner[first].flip(0)])
    mixed, targets = timms(images[places].clone(), labels[places])
    torch.testing.assert_close(mixup(images)[places], mixed, rtol=0, atol=1e-6)
    ours = mixup(soft_targets(labels, CLASSES, smoothing))
    torch.testing.assert_close(ours[places], targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_softmax_loss_is_torchs_cross_entropy_of_soft_targets(batch, smoothing):
    _, logits, labels = batch
    mixup = Mixup(0.7, Pairing(8, 4))
    ours = softmax_cross_entropy(logits, mixup(soft_targets(labels, CLASSES, smoothing)))
    mixed = mixup(F.one_hot(labels, CLASSES).float())
    theirs = F.cross_entropy(logits, mixed, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_mixing_losses_is_mixing_targets(batch, loss):
    _, logits, labels = batch
    mixup = Mixup(0.6, Pairing(8, 4))
    targets = soft_targets(labels, CLASSES)
    torch.testing.assert_close(mixup.loss(loss, logits, targets), loss(logits, mixup(targets)))


def test_a_class_that_one_of_two_knows_counts_with_its_share():
    logits = torch.tensor([[0.3, -1.2, float("inf")], [2.0, 0.5, 0.1]], requires_grad=True)
    labels = torch.tensor([[1, -1, -1], [0, 1, -1]], dtype=torch.int8)
    loss = Mixup(0.75, Pairing(2, 1)).loss(masked_sigmoid_cross_entropy, logits, labels)
    bce = F.binary_cross_entropy_with_logits
    expected = (
        bce(logits[0, 0], torch.tensor(0.75))  # known of both: the target is mixed
        + 0.25 * bce(logits[0, 1], torch.tensor(1.0))  # of the partner only
        + bce(logits[1, 0], torch.tensor(0.25))
        + 0.75 * bce(logits[1, 1], torch.tensor(1.0))
    ) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad[:, 2].tolist() == [0.0, 0.0]  # known of neither


def test_a_share_of_one_changes_nothing(batch):
    images, logits, labels = batch
    mixup = Mixup(mixup_share(0.0, 0, 5), Pairing(8, 4))
    targets = soft_targets(labels, CLASSES)
    assert mixup(images) is images
    assert mixup.loss(softmax_cross_entropy, logits, targets) == softmax_cross_entropy(
        logits, targets
    )


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_shares_are_the_larger_part_of_a_beta_draw(alpha):
    shares = np.array([mixup_share(alpha, 1, step) for step in range(2000)])
    assert shares.min() >= 0.5 and shares.max() <= 1
    beta = stats.beta(alpha, alpha)
    assert stats.kstest(shares, lambda x: 2 * beta.cdf(x) - 1).pvalue > 0.01


def test_shares_belong_to_seed_and_step():
    # Golden: a run that goes on next year must mix as before (to scipy's last digits).
    shares = [mixup_share(0.2, 0, step) for step in range(3)]
    assert shares == pytest.approx([0.9042479729150353, 0.8957288835471231, 0.6231231505286324])
    assert len({mixup_share(0.5, seed, step) for seed in range(5) for step in range(5)}) == 25


def partner_positions(global_images: int, world_size: int, micro_images: int) -> list[int]:
    """Partner of each position of a step, worked out on every rank from its own positions."""
    mixing = pairing(global_images, world_size, micro_images)
    found = torch.empty(global_images, dtype=torch.int64)
    for start in range(0, global_images, world_size * micro_images):
        for rank in range(world_size):
            own = start + rank + world_size * torch.arange(micro_images)
            found[own] = mixing.partners(own)
    return found.tolist()


def test_partners_are_the_same_at_any_split_that_keeps_them_together():
    # 256 images: partners are 8 apart, so up to 8 ranks, and micro batches of 16 over all ranks.
    expected = [p - 8 if p // 8 % 2 else p + 8 for p in range(256)]
    splits = [(1, 256), (1, 16), (2, 128), (2, 8), (4, 4), (8, 2), (8, 32), (4, 64)]
    assert all(partner_positions(256, *split) == expected for split in splits)
    # 288: 9 apart, for 3 ranks and 9.
    assert partner_positions(288, 3, 6) == partner_positions(288, 9, 16)


@pytest.mark.parametrize(
    ("world_size", "micro_images"), [(16, 16), (1, 8), (2, 4), (64, 2)], ids=str
)
def test_other_splits_pair_across_half_their_own_micro_batch(world_size, micro_images):
    mixing = pairing(256, world_size, micro_images)
    assert mixing == Pairing(micro_images, micro_images // 2)
    assert f"micro batches of {micro_images}: with another number of ranks" in mixing.notice()
    assert pairing(256, 1, 16).notice() is None


@pytest.mark.parametrize("split", [(256, 4, 64), (256, 1, 8), (15, 1, 5), (9, 3, 3)], ids=str)
def test_every_image_is_somebody_elses_partner_once(split):
    partners = partner_positions(*split)
    assert sorted(partners) == list(range(split[0]))
    assert all(partner != own for own, partner in enumerate(partners))
