"""Mixing of classes, against counting and against the formula of a random draw."""

import numpy as np
import pytest

from data_pipeline.class_mixing import mixing
from data_pipeline.simulation import make_order
from tests.data_pipeline.sample_fleets import fleet_of


def test_mixing_counts_the_classes_of_real_batches():
    order = make_order(fleet_of(images=1000, shards=10, streams=2))
    mixed = mixing(order, classes=100, batch_images=50, num_batches=4)
    labels = np.arange(1000) // 10
    starts = [0, 316, 633, 950]
    batches = [labels[order.rows_at(np.arange(start, start + 50))] for start in starts]
    assert mixed.sorted.classes == np.mean([len(set(batch)) for batch in batches])
    # Drawing 50 of 100 classes of 10: 100 (1 - 0.95^50) within noise, and sorted shards far less.
    expected = 100 * (1 - np.prod([(990 - k) / (1000 - k) for k in range(50)]))
    for kind in (mixed.ideal, mixed.shuffled):
        assert kind.classes == pytest.approx(expected, abs=4)
        assert kind.clumping == pytest.approx(1, abs=0.25)
    assert mixed.sorted.classes < 30
    assert mixed.sorted.clumping > 2


def test_clumps_of_n_images_are_told_as_n():
    # One stream a shard, a class a shard, four images of each stream in a batch.
    order = make_order(fleet_of(images=4096, shards=64, streams=64))
    clumping = mixing(order, classes=4096 // 64, batch_images=128, num_batches=8).sorted.clumping
    assert clumping == pytest.approx(0, abs=0.01)  # exactly two of each class: better than a draw
    order = make_order(fleet_of(images=64 * 1024, shards=1024, streams=16))
    mixed = mixing(order, classes=1024, batch_images=128, num_batches=8)
    assert mixed.sorted.clumping == pytest.approx(8, rel=0.1)
