"""Shares of the time, on clocks that the tests move: a host's, and a GPU's that lags behind."""

import pytest
import torch

from training.phases import BACKWARD, DATA, FORWARD, PhaseTimer


def test_shares_of_a_cpu_add_up_to_one(clock):
    phases = PhaseTimer(torch.device("cpu"), clock)
    for phase, seconds in ((DATA, 3.0), (FORWARD, 1.0), (DATA, 1.0), (BACKWARD, 2.0)):
        phases.begin(phase)
        clock.now += seconds
    with phases.within("saving"):
        clock.now += 1.0
    clock.now += 2.0  # backward again
    expected = {"data": 0.4, "forward": 0.1, "backward": 0.4, "saving": 0.1, "other": 0.0}
    assert phases.read_and_reset() == pytest.approx(expected)
    assert phases.read_and_reset() == {}
    clock.now += 5.0
    assert phases.read_and_reset() == pytest.approx({"backward": 1.0})


@pytest.fixture
def gpu(monkeypatch):
    """Stands where CUDA's events do: what the host records happens later, in order."""

    class Gpu:
        now = 0.0  # milliseconds of the device
        reached = 0.0  # how far it has got
        recorded = 0
        synchronised = 0

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Gpu.recorded += 1
            self.at = Gpu.now

        def query(self):
            return self.at <= Gpu.reached

        def synchronize(self):
            Gpu.synchronised += 1
            Gpu.reached = max(Gpu.reached, self.at)

        def elapsed_time(self, end):
            assert self.query() and end.query()  # the real ones raise
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    return Gpu


def test_shares_of_a_gpu_are_on_its_clock_and_nothing_waits_for_it_in_between(gpu):
    phases = PhaseTimer(torch.device("cuda"))
    for _ in range(3):
        for phase, milliseconds in ((DATA, 1.0), (FORWARD, 3.0), (BACKWARD, 6.0)):
            phases.begin(phase)
            gpu.now += milliseconds
        assert gpu.synchronised == 0
    expected = {"data": 0.1, "forward": 0.3, "backward": 0.6, "other": 0.0}
    assert phases.read_and_reset() == pytest.approx(expected)
    assert gpu.synchronised == 1
    gpu.now += 4.0
    assert phases.read_and_reset() == pytest.approx({"backward": 1.0})


def test_a_long_interval_reads_what_the_gpu_has_reached_without_waiting(gpu):
    phases = PhaseTimer(torch.device("cuda"))
    for _ in range(5000):
        phases.begin(FORWARD)
        gpu.now += 3.0
        gpu.reached = gpu.now - 10.0
        phases.begin(BACKWARD)
        gpu.now += 1.0
    assert gpu.synchronised == 0
    assert len(phases._marks) < 1100
    shares = phases.read_and_reset()
    assert (shares["forward"], shares["backward"]) == pytest.approx((0.75, 0.25))
