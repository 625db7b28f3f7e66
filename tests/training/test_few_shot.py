"""The closed-form probe against scikit-learn's Ridge, and over two ranks against one."""

import math

import numpy as np
import pytest
import torch

from training.few_shot import (
    Features,
    collect_features,
    few_shot_top1,
    fit_probe,
    solve_ridge,
)


def features(images, width=12, classes=4, seed=0):
    """Features that know something of the class, row mod 4; columns of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    values = torch.randn(images, width, generator=generator) + centres[labels]
    scale = torch.logspace(-2, 2, width)
    return Features(values * scale + 3 * scale, labels, torch.arange(images))


@pytest.mark.parametrize("images", [5, 12, 13, 14, 200])
def test_probe_is_scikit_learns_ridge(images):
    """Both the primal form (as many images as inputs, 13, or more) and the dual."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    train, test = features(images), features(50, seed=1)
    ours = fit_probe(train.values, train.labels, num_classes=4, ridge=1024.0)

    scaler = StandardScaler().fit(train.values.double().numpy())
    scaler.scale_ = np.sqrt(scaler.var_) + 1e-5

    def inputs(values):
        whitened = scaler.transform(values.double().numpy())
        return np.concatenate([whitened, np.full((len(whitened), 1), 100.0)], axis=1)

    targets = np.where(train.labels.numpy()[:, None] == np.arange(4), 1.0, -1.0)
    reference = Ridge(alpha=1024.0, fit_intercept=False, solver="svd")
    reference.fit(inputs(train.values), targets)
    np.testing.assert_allclose(ours.weight.numpy().T, reference.coef_, rtol=1e-8, atol=1e-12)
    expected = reference.predict(inputs(test.values))
    np.testing.assert_allclose(ours.scores(test.values).numpy(), expected, rtol=1e-8, atol=1e-10)
    assert ours.weight.dtype == torch.float64


@pytest.mark.parametrize("shape", [(9, 20), (20, 9), (9, 9)])
def test_the_solution_has_no_gradient(shape):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(*shape, dtype=torch.float64, generator=generator)
    targets = torch.randn(shape[0], 5, dtype=torch.float64, generator=generator)
    weight = solve_ridge(inputs, targets, 0.7).requires_grad_()
    loss = (inputs @ weight - targets).square().sum() + 0.7 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-10


def test_features_leave_padding_out_and_keep_rows():
    images = torch.arange(12.0).view(6, 2)
    labels = torch.tensor([1, -1, 0, 2, -1, -1])
    batches = zip(images.split(3), labels.split(3), torch.arange(6).split(3), strict=True)
    found = collect_features(lambda x: (10 * x).bfloat16(), batches, "cpu")
    assert found.values.dtype == torch.float32
    assert found.values.tolist() == [[0, 10], [40, 50], [60, 70]]
    assert found.labels.tolist() == [1, 0, 2] and found.rows.tolist() == [0, 2, 3]


CHOICES = {
    (shots, seed): np.sort(
        np.random.default_rng(seed).permutation(15)[:shots, None] * 4 + np.arange(4), axis=None
    )
    for shots in (1, 10)
    for seed in (0, 1, 2)
}


def scores(train, test, choices=None, **options):
    options = {"num_classes": 4, "ridge": 1024.0, "distributed": False, **options}
    return few_shot_top1(train, test, choices or CHOICES, **options)


def test_scores_are_those_of_each_choice_alone():
    train, test = features(60), features(83, seed=1)
    found = scores(train, test)
    assert list(found) == [1, 10] and all(len(values) == 3 for values in found.values())
    for (shots, seed), rows in CHOICES.items():
        chosen = torch.from_numpy(rows)
        probe = fit_probe(train.values[chosen], train.labels[chosen], num_classes=4, ridge=1024.0)
        right = probe.scores(test.values).argmax(1) == test.labels
        assert found[shots][seed] == pytest.approx(right.double().mean().item(), abs=1e-12)
    assert np.mean(found[10]) > 0.5


def test_features_that_are_no_numbers_score_nothing():
    train, test = features(60), features(20, seed=1)
    train.values[:, 0] = math.nan
    assert scores(train, test) == {1: [0.0] * 3, 10: [0.0] * 3}


def test_no_test_image_is_nan():
    assert all(math.isnan(v) for v in scores(features(60), features(0))[1])


def _score_share(rank, world_size, address, results):
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world_size
    )
    train, test = features(60), features(83, seed=1)

    def share(whole, first):
        """Unequal parts, the second one backwards: the order on a rank is not to matter."""
        own = torch.arange(first) if rank == 0 else torch.arange(len(whole.rows) - 1, first - 1, -1)
        return Features(whole.values[own], whole.labels[own], whole.rows[own])

    results[rank] = scores(share(train, 41), share(test, 7), distributed=True)
    torch.distributed.destroy_process_group()


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_two_ranks_score_what_one_scores(tmp_path):
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        arguments = (2, f"file://{tmp_path}/rendezvous", results)
        torch.multiprocessing.spawn(_score_share, arguments, nprocs=2)
        found = dict(results)
    assert found[0] == found[1] == scores(features(60), features(83, seed=1))
