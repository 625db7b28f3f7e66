"""Scores against scikit-learn, and over two ranks against one."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.evaluate import evaluate


def make_data(num_images=203, num_classes=11, seed=0):
    """Logits that know something, labels that miss two classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes - 2, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), labels] += 1.0
    return logits, labels


def padded_batches(logits, labels, size):
    """Full batches; the last is filled up with rows that would count if labels were not -1."""
    for start in range(0, len(labels), size):
        missing = size - len(labels[start : start + size])
        yield (
            torch.cat([logits[start : start + size], torch.full((missing, logits.shape[1]), 9.0)]),
            torch.cat([labels[start : start + size], torch.full((missing, *labels.shape[1:]), -1)]),
        )


def score(logits, labels, size=32, **options):
    return evaluate(
        lambda images: images,  # the "images" are the logits
        padded_batches(logits, labels, size),
        num_classes=logits.shape[1],
        device="cpu",
        distributed=False,
        **options,
    )


def test_scores_are_scikit_learns():
    # imported here because the two ranks below import this module and have no need of it
    from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

    logits, labels = make_data()
    ours = score(logits, labels)
    classes = list(range(11))
    probabilities = logits.softmax(1).numpy()
    predicted = logits.argmax(1).numpy()
    expected_top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    recalls = recall_score(
        labels, predicted, labels=classes, average=None, zero_division=float("nan")
    )
    assert ours.num_images == 203
    assert ours.top1 == pytest.approx((predicted == labels.numpy()).mean(), abs=1e-12)
    assert ours.top5 == pytest.approx(expected_top5, abs=1e-12)
    assert ours.per_class[:9].tolist() == pytest.approx(recalls[:9].tolist(), abs=1e-12)
    assert ours.per_class[9:].isnan().all()
    assert ours.mean_per_class == pytest.approx(recalls[:9].mean(), abs=1e-12)
    expected = confusion_matrix(labels, predicted, labels=classes)
    assert ours.confusion.tolist() == expected.tolist()
    assert ours.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)


def test_sigmoid_loss_is_summed_over_classes():
    logits, labels = make_data()
    targets = F.one_hot(labels, 11).double()
    expected = F.binary_cross_entropy_with_logits(logits.double(), targets, reduction="sum") / 203
    assert score(logits, labels, loss_kind="sigmoid").loss == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_the_batch_size_changes_nothing():
    logits, labels = make_data()
    one, other = score(logits, labels, size=7), score(logits, labels, size=64)
    assert (one.top1, one.top5, one.num_images) == (other.top1, other.top5, other.num_images)
    assert torch.equal(one.confusion, other.confusion)


def test_few_classes_make_top5_top_of_all():
    logits, labels = make_data(num_classes=4)
    assert score(logits, labels).top5 == 1.0


def test_a_model_that_says_nothing_is_not_right_every_time():
    labels = torch.arange(10)
    ours = score(torch.zeros(10, 10), labels)
    assert (ours.top1, ours.top5) == (0.1, 0.5)


def test_not_a_number_counts_as_wrong():
    logits, labels = torch.zeros(4, 6), torch.tensor([0, 1, 2, 3])
    logits[torch.arange(4), labels] = float("nan")
    ours = score(logits, labels)
    assert (ours.top1, ours.top5) == (0.0, 0.0)
    assert math.isnan(ours.loss)


def test_no_image_at_all_is_nan():
    ours = score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert ours.num_images == 0
    assert math.isnan(ours.top1) and math.isnan(ours.loss)


def test_many_classes_keep_no_confusion_matrix():
    logits = torch.zeros(2, 1025)
    assert score(logits, torch.tensor([0, 3])).confusion is None


def with_second_labels():
    """A class more than the own one counts as right for every second image."""
    logits, labels = make_data()
    others = torch.stack([labels, (labels + 1) % 11], dim=1)
    others[1::2] = -1
    return logits, torch.cat([labels[:, None], others], dim=1)


def _score_share(rank, world_size, address, results):
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world_size
    )
    logits, labels = with_second_labels()
    own = slice(rank, None, world_size)
    results[rank] = evaluate(
        lambda images: images,
        padded_batches(logits[own], labels[own], 32),
        num_classes=11,
        device="cpu",
        distributed=True,
    )
    torch.distributed.destroy_process_group()


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_two_ranks_score_what_one_scores(tmp_path):
    alone = score(*with_second_labels())
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        arguments = (2, f"file://{tmp_path}/rendezvous", results)
        torch.multiprocessing.spawn(_score_share, arguments, nprocs=2)
        found = dict(results)
    for rank in (0, 1):
        ours = found[rank]
        assert (ours.top1, ours.top5, ours.num_images) == (alone.top1, alone.top5, 203)
        assert (ours.real_top1, ours.num_real_images) == (alone.real_top1, 102)
        assert torch.equal(ours.confusion, alone.confusion)
        assert torch.equal(ours.per_class.nan_to_num(-1), alone.per_class.nan_to_num(-1))
        assert ours.loss == pytest.approx(alone.loss, rel=1e-12)


def test_second_labels_score_as_the_published_code_does():
    """`pred in real[file]` for every file with a list (google-research/reassessed-imagenet)."""
    logits, labels = make_data(num_images=70, seed=3)
    generator = torch.Generator().manual_seed(4)
    lists = [torch.randperm(11, generator=generator)[: number % 4].tolist() for number in range(70)]
    accepted = torch.tensor([[*classes, -1, -1, -1][:3] for classes in lists])
    ours = score(logits, torch.cat([labels[:, None], accepted], dim=1))
    predicted = logits.argmax(1).tolist()
    right = [p in classes for p, classes in zip(predicted, lists, strict=True) if classes]
    assert ours.num_real_images == len(right) == 52
    assert 0 < ours.real_top1 == pytest.approx(sum(right) / len(right))
    plain = score(logits, labels)
    assert plain.real_top1 is None and plain.num_real_images == 0
    assert (ours.top1, ours.top5, ours.loss) == (plain.top1, plain.top5, plain.loss)


def test_a_logit_that_is_no_number_is_wrong_by_second_labels_too():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]])
    assert score(logits, torch.tensor([[0, 1], [0, 1]])).real_top1 == 0.5
