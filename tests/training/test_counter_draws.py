"""Draws by counter against the generator of one position, which is their definition."""

import numpy as np

from data_pipeline.position_draws import PositionDraws
from training.counter_draws import draws_key, uniform_draws


def test_draws_are_splitmix64_begun_at_each_counter():
    counters = np.array([0, 1, 63, 12_345_678_901, 2**40])
    key = draws_key("randaugment", 7)
    ours = uniform_draws(key, counters, 6)
    for counter, row in zip(counters.tolist(), ours, strict=True):
        single = PositionDraws(key, counter)
        assert row.tolist() == [single.uniform() for _ in range(6)]


def test_keys_tell_purposes_and_seeds_apart_for_good():
    assert draws_key("mixup", 0) == 0xA405F442B008DEC9
    assert len({draws_key(p, s) for p in ("mixup", "randaugment") for s in range(9)}) == 18


def test_draws_are_uniform_and_neighbours_unrelated():
    draws = uniform_draws(draws_key("test", 3), np.arange(20_000), 4)
    assert 0 <= draws.min() and draws.max() < 1
    # Standard errors: 0.29 / sqrt(20000) = 0.002 of a mean, 0.007 of a correlation.
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    columns = np.concatenate([draws, np.roll(draws, 1, axis=0)], axis=1)
    related = np.corrcoef(columns, rowvar=False) - np.eye(8)
    assert np.abs(related).max() < 0.035
