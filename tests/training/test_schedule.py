"""The learning rate against closed forms and torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.schedule import Tail, fit_warmup, learning_rate


def curve(kind, total_steps, warmup_steps, peak=0.5, tail=Tail()):  # noqa: B008
    return [
        learning_rate(
            step,
            kind=kind,
            peak=peak,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            tail=tail,
        )
        for step in range(total_steps + 1)
    ]


@pytest.mark.parametrize("kind", ["cosine", "linear", "rsqrt", "constant"])
def test_warmup_is_linear_from_zero_and_reaches_the_peak(kind):
    rates = curve(kind, 30, 10)
    assert rates[:11] == pytest.approx([0.05 * step for step in range(11)], abs=1e-15)
    assert max(rates) == rates[10] == 0.5


@pytest.mark.parametrize(("kind", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", 0.5)])
def test_the_end(kind, last):
    assert curve(kind, 30, 10)[-1] == pytest.approx(last, abs=1e-15)


def test_cosine_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        ours = learning_rate(step, kind="cosine", peak=0.5, total_steps=50, warmup_steps=0)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        reference.step()


def test_closed_forms_halfway():
    assert curve("cosine", 110, 10)[60] == pytest.approx(0.25)
    assert curve("linear", 110, 10)[60] == pytest.approx(0.25)
    assert curve("cosine", 110, 10)[35] == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))


def authors_rate(step, *, base, total_steps, warmup_steps, kind, timescale, cooldown_steps):
    """The published schedule function (big_vision), in numpy's float64: shape, warmup, cooldown."""
    progress = np.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
    shapes = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + np.cos(np.pi * progress)),
        "rsqrt": np.where(
            warmup_steps <= step, 1 / np.sqrt(1 + np.maximum(step - warmup_steps, 0) / timescale), 1
        ),
        "constant": 1.0,
    }
    rate = base * shapes[kind] * np.minimum(1.0, step / warmup_steps)
    if cooldown_steps:
        rate = rate * np.minimum(1.0, (total_steps - step) / cooldown_steps)
    return rate


@pytest.mark.parametrize("kind", ["cosine", "linear", "rsqrt", "constant"])
@pytest.mark.parametrize("cooldown_steps", [0, 25])
def test_every_shape_is_the_authors(kind, cooldown_steps):
    expected = authors_rate(
        np.arange(201),
        base=0.5,
        total_steps=200,
        warmup_steps=20,
        kind=kind,
        timescale=40,
        cooldown_steps=cooldown_steps,
    )
    ours = curve(kind, 200, 20, tail=Tail(40, cooldown_steps))
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)


def test_rsqrt_in_closed_form():
    rates = curve("rsqrt", 400, 10, tail=Tail(timescale_steps=100))
    assert rates[110] == pytest.approx(0.5 / math.sqrt(2))
    assert rates[310] == pytest.approx(0.25)
    # With as long a timescale as the warmup: the root of the step, as in the first transformers.
    usual = curve("rsqrt", 400, 10, tail=Tail(timescale_steps=10))
    assert usual[40] == pytest.approx(0.5 * math.sqrt(10 / 40))


def test_a_longer_run_goes_on_where_the_cooldown_had_not_begun():
    short = curve("rsqrt", 200, 10, tail=Tail(50, 40))
    long = curve("rsqrt", 1000, 10, tail=Tail(50, 40))
    assert short[:161] == long[:161] and short[200] == long[1000] == 0.0
    assert short[180] == pytest.approx(long[180] / 2)


@given(st.integers(0, 200), st.integers(1, 200))
def test_fitted_warmup_always_leaves_steps_for_the_decay(warmup_steps, total_steps):
    fitted, notice = fit_warmup(warmup_steps, total_steps)
    assert 0 <= fitted < total_steps
    assert (notice is None) == (fitted == warmup_steps)


def test_a_short_run_warms_up_for_a_tenth_and_says_so():
    fitted, notice = fit_warmup(10_000, 200)
    assert fitted == 20
    assert "10000" in notice and "200 steps" in notice and "20 instead" in notice


def test_a_run_of_one_step_learns_something():
    fitted, _ = fit_warmup(500, 1)
    rate = learning_rate(0, kind="cosine", peak=0.1, total_steps=1, warmup_steps=fitted)
    assert rate == 0.1
