"""Rates, on a clock that the test moves."""

import pytest

from training.throughput import ThroughputMeter


def make_meter(clock, peak_flops=None):
    return ThroughputMeter(64, 2e9, peak_flops, 4, clock)


def test_images_per_second_and_wait(clock):
    meter = make_meter(clock)
    for _ in range(5):
        meter.record_wait(0.1)
        clock.now += 0.4
        meter.step_done()
    rates = meter.read_and_reset()
    assert rates == pytest.approx({"images_per_second": 160.0, "data_wait_fraction": 0.25})


def test_mfu_counts_backward_twice_and_all_devices(clock):
    meter = make_meter(clock, peak_flops=1e12)
    clock.now += 2.0
    meter.step_done()
    assert meter.read_and_reset()["mfu"] == pytest.approx(3 * 2e9 * 32 / (4 * 1e12))


def test_pauses_do_not_count(clock):
    meter = make_meter(clock)
    clock.now += 1.0
    with meter.pause():
        clock.now += 50.0
    meter.step_done()
    assert meter.read_and_reset()["images_per_second"] == pytest.approx(64.0)


def test_a_reading_starts_anew(clock):
    meter = make_meter(clock)
    clock.now += 1.0
    meter.step_done()
    meter.record_wait(1.0)
    meter.read_and_reset()
    clock.now += 2.0
    meter.step_done()
    expected = {"images_per_second": 32.0, "data_wait_fraction": 0.0}
    assert meter.read_and_reset() == pytest.approx(expected)


def test_no_step_no_rates(clock):
    meter = make_meter(clock)
    clock.now += 1.0
    assert meter.read_and_reset() == {}
