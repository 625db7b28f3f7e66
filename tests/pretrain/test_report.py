"""Time shares of a run, on a clock that only the loader and the model move."""

import pytest

import pretrain.step
from pretrain import loop
from pretrain.session import open_training
from training.phases import PhaseTimer


class SlowLoader:
    """The real one, but each batch after the first `quick_steps` steps takes 3 s of the clock."""

    def __init__(self, training, clock, quick_steps):
        self.__dict__.update(loader=training.loader, training=training, clock=clock)
        self.__dict__["quick_steps"] = quick_steps

    def __next__(self):
        self.clock.now += 3.0 if self.training.step >= self.quick_steps else 0.5
        return next(self.loader)

    def __getattr__(self, name):
        return getattr(self.loader, name)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def rows(plan_of, one_rank, monkeypatch):
    """Rows that a run logs after steps 2 and 4; its loader is slow from step 2 on."""
    plan = plan_of({"schedule.total-steps": 4, "data.val": None, "logging.every-steps": 2})
    clock, logged = Clock(), []

    def loss_of(*arguments, plain=pretrain.step._loss):
        clock.now += 1.0
        return plain(*arguments)

    def update(engine, plain=pretrain.step._update):
        clock.now += 2.0
        return plain(engine)

    monkeypatch.setattr(pretrain.step, "_loss", loss_of)
    monkeypatch.setattr(pretrain.step, "_update", update)
    with open_training(plan) as training:
        training.loader = SlowLoader(training, clock, quick_steps=2)
        training.phases = PhaseTimer(training.device, clock)
        monkeypatch.setattr(training.progress, "log", lambda _, row: logged.append(dict(row)))
        loop.train(training)
    return logged


def test_a_slow_loader_shows_in_the_share_of_data(rows):
    first, second = (
        {name: value for name, value in row.items() if name.startswith("time/")} for row in rows
    )
    zero = ("augmentation", "backward", "logging", "other")
    quiet = {f"time/{phase}": 0.0 for phase in zero}
    # Per step 4 micro batches: 0.5 s or 3 s of waiting and 1 s of forward pass each; 2 s of update.
    assert first == pytest.approx(
        {**quiet, "time/data": 2 / 8, "time/forward": 4 / 8, "time/optimizer": 2 / 8}
    )
    expected = {**quiet, "time/data": 12 / 18, "time/forward": 4 / 18, "time/optimizer": 2 / 18}
    assert {name: second[name] for name in expected} == pytest.approx(expected)


def test_a_row_says_how_the_run_is_doing(rows):
    expected = {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "throughput/images_per_second",
        "system/memory_gib",
        "grad_norm/patch_embedding",
        "grad_norm/block_00",
        "weight_norm/all",
        "relative_update/head",
    }
    for row in rows:
        assert expected <= row.keys()
        assert "train/loss_scale" not in row and "time/data_worst_rank" not in row
