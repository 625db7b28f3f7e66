"""Spikes are found, and what is no spike is not."""

import random

from training.loss_spikes import SpikeDetector


def test_scores_are_robust_deviations_from_the_window():
    detector = SpikeDetector(window=9)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0):
        detector.remember(loss)
    # Median 5, median absolute deviation 2.
    assert abs(detector.score(11.0) - 6.0 / (1.4826 * 2.0)) < 1e-9


def test_nothing_is_said_until_enough_losses_are_known():
    detector = SpikeDetector(window=20)
    for _ in range(8):
        assert detector.score(100.0) == 0.0
        detector.remember(1.0)
    assert detector.score(100.0) > 1e5


def test_an_earlier_spike_does_not_hide_the_next():
    noise = random.Random(0)
    detector = SpikeDetector(window=20)
    for _ in range(20):
        detector.remember(2.0 + 0.1 * noise.gauss(0, 1))
    assert detector.score(9.0) > 20
    detector.remember(9.0)
    assert detector.score(9.0) > 20


def test_falling_and_noisy_losses_are_no_spikes():
    noise = random.Random(1)
    detector = SpikeDetector(window=50)
    scores = [detector.score(7.0 * 0.995**step + 0.05 * noise.gauss(0, 1)) for step in range(2000)]
    assert max(scores) < 8


def test_the_window_slides():
    detector = SpikeDetector(window=8)
    for loss in (1.0,) * 8 + (50.0,) * 8:
        detector.remember(loss)
    assert detector.score(50.0) == 0.0
