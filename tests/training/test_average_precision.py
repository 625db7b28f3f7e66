"""Average precision and the masked loss, against torchmetrics and plain loops."""

import pytest
import torch
import torch.multiprocessing

from training.average_precision import evaluate_multi_label
from training.losses import known_targets, masked_sigmoid_cross_entropy


def reference(**options):
    from torchmetrics.classification import MultilabelAveragePrecision  # slow; not in ranks

    return MultilabelAveragePrecision(**options)


def labelled(images: int, classes: int, seed: int, *, ties: bool = False):
    """Logits and labels of which half are unknown; class 0 has no positives, class 1 only those."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    if ties:
        logits = (logits * 2).round() / 2
    labels = torch.randint(0, 2, (images, classes), generator=generator).to(torch.int8)
    labels[:, 0], labels[:, 1] = 0, 1
    labels[torch.rand(images, classes, generator=generator) < 0.5] = -1
    return logits, labels


def batches(logits, labels, size=7):
    """The logits stand in for images; the model is the identity."""
    return zip(logits.split(size), labels.split(size), strict=True)


def evaluate(logits, labels, **options):
    options = {"device": "cpu", "distributed": False, **options}
    pairs = batches(logits, labels)
    return evaluate_multi_label(lambda x: x, pairs, num_classes=logits.shape[1], **options)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_per_class_is_that_of_torchmetrics(seed, ties):
    logits, labels = labelled(60, 6, seed, ties=ties)
    ours = evaluate(logits, labels)
    metric = reference(num_labels=6, average=None, ignore_index=-1)
    theirs = metric(logits.sigmoid(), labels.long())
    assert torch.isnan(ours.per_class[0])  # where torchmetrics says 0 or nan, with a warning
    torch.testing.assert_close(ours.per_class[1:].float(), theirs[1:], rtol=1e-5, atol=1e-6)
    assert ours.mean_average_precision == pytest.approx(float(theirs[1:].mean()), rel=1e-5)
    assert ours.num_known == int((labels >= 0).sum())


def test_overall_is_the_macro_average_of_torchmetrics_where_all_is_known():
    logits, labels = labelled(50, 5, seed=3)
    labels = (logits + torch.randn(50, 5, generator=torch.Generator().manual_seed(4)) > 0).to(
        torch.int8
    )
    theirs = reference(num_labels=5)(logits.sigmoid(), labels.long())
    assert evaluate(logits, labels).mean_average_precision == pytest.approx(float(theirs), rel=1e-5)


def test_padding_counts_nowhere():
    logits, labels = labelled(20, 4, seed=5)
    plain = evaluate(logits, labels)
    padded = evaluate(
        torch.cat([logits, torch.full((9, 4), 7.0)]),
        torch.cat([labels, torch.full((9, 4), -1, dtype=torch.int8)]),
    )
    assert torch.equal(plain.per_class.nan_to_num(-1), padded.per_class.nan_to_num(-1))
    assert padded.num_images == plain.num_images == int((labels >= 0).any(1).sum())
    assert padded.loss == pytest.approx(plain.loss, rel=1e-6)


def test_a_score_that_is_no_number_ranks_last():
    logits = torch.tensor([[float("nan")], [0.0], [-1.0]])
    labels = torch.tensor([[1], [0], [0]], dtype=torch.int8)
    assert evaluate(logits, labels).mean_average_precision == pytest.approx(1 / 3)


def test_nothing_known_scores_nothing():
    result = evaluate(torch.zeros(3, 2), torch.full((3, 2), -1, dtype=torch.int8))
    assert result.num_images == 0 and result.num_known == 0
    assert result.mean_average_precision != result.mean_average_precision  # nan


def _rank(rank, folder, world_size):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    logits, labels = labelled(31, 5, seed=6)
    start = 0 if rank == 0 else 20  # unequal shares
    stop = 20 if rank == 0 else 31
    result = evaluate(logits[start:stop], labels[start:stop], distributed=True)
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_ranks_agree_with_one_process(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), 2), nprocs=2)
    alone = evaluate(*labelled(31, 5, seed=6))
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        torch.testing.assert_close(result.per_class, alone.per_class, equal_nan=True)
        assert result.num_images == alone.num_images and result.num_known == alone.num_known
        assert result.loss == pytest.approx(alone.loss, rel=1e-6)


def test_the_loss_sums_known_classes_only():
    logits, labels = labelled(9, 4, seed=7)
    p = torch.sigmoid(logits.double())
    total = 0.0
    for image in range(9):
        for number in range(4):
            if labels[image, number] >= 0:
                right = p[image, number] if labels[image, number] else 1 - p[image, number]
                total -= right.log()
    ours = masked_sigmoid_cross_entropy(logits, labels)
    torch.testing.assert_close(ours.double(), total / 9, rtol=1e-5, atol=1e-6)


def test_unknown_classes_have_no_gradient():
    logits, labels = labelled(9, 4, seed=8)
    logits = logits.clone()
    logits[labels == -1] = float("inf")
    logits.requires_grad_()
    masked_sigmoid_cross_entropy(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[labels == -1] == 0).all()
    assert (logits.grad[labels != -1] != 0).all()


def test_targets_and_mask():
    targets, mask = known_targets(torch.tensor([[1, 0, -1]], dtype=torch.int8))
    assert targets.tolist() == [[1, 0, 0]] and mask.tolist() == [[1, 1, 0]]
