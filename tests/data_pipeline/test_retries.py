"""How often and how long a transfer is repeated, on a clock of the test's own; what a fault is."""

import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest
import tenacity

from data_pipeline.remote import retries
from data_pipeline.remote.faults import (
    ShardUnavailable,
    ShardWrong,
    TransferFault,
    fault_of_error,
    fault_of_status,
    seconds_to_wait,
)
from data_pipeline.remote.retries import RetryPolicy
from tests.data_pipeline.quick_transfers import of_aiohttp


class Clock(threading.Event):
    """Stands where the loader's closing event does: every pause is a wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.now += timeout
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Every pause as long as it may be; gives the ranges from which they would be drawn."""
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr(tenacity.wait.random, "uniform", uniform)
    return drawn


def failing(*faults: TransferFault):
    """An attempt that fails with these faults, the last for ever; and how often it was made."""
    left, made = list(faults), []

    def attempt() -> str:
        made.append(len(made))
        fault = left.pop(0) if len(left) > 1 else left[0]
        raise fault

    return attempt, made


def test_long_repeating_is_told_once_a_minute(clock, longest_pauses, caplog):
    attempt, _ = failing(TransferFault("reset"))
    with pytest.raises(ShardUnavailable):
        RetryPolicy(130.0, clock).run(attempt, "x.tar")
    told = [record.getMessage() for record in caplog.records]
    # Pauses end at 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5 and 121.5 s.
    assert told == ["x.tar cannot be read (reset); trying for up to 130 s"] * 2
    caplog.clear()
    briefly = iter([TransferFault("reset"), TransferFault("reset")])

    def works_soon() -> str:
        if fault := next(briefly, None):
            raise fault
        return "bytes"

    assert RetryPolicy(130.0, clock).run(works_soon, "x.tar") == "bytes"
    assert not caplog.records


def test_pauses_double_to_half_a_minute_and_are_drawn_from_all_of_it(clock, longest_pauses):
    attempt, made = failing(TransferFault("reset"))
    with pytest.raises(ShardUnavailable, match=r"after 10 attempts in 121\.5 s"):
        RetryPolicy(130.0, clock).run(attempt, "x.tar")
    assert clock.pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert len(made) == 10
    # Ranks that failed together do not come back together.
    assert [low for low, _ in longest_pauses[:9]] == [0] * 9


def test_what_fails_for_a_while_is_outlived(clock, longest_pauses):
    repeats = []
    attempts = iter([TransferFault("reset")] * 5)

    def attempt() -> str:
        for fault in attempts:
            raise fault
        return "here"

    policy = RetryPolicy(300.0, clock, on_retry=lambda: repeats.append(1))
    assert policy.run(attempt, "x.tar") == "here"
    assert len(repeats) == len(clock.pauses) == 5


def test_no_pause_goes_past_the_budget(clock, longest_pauses):
    attempt, made = failing(TransferFault("refused"))
    with pytest.raises(ShardUnavailable):
        RetryPolicy(3.0, clock).run(attempt, "x.tar")
    assert clock.now <= 3.0 and made == [0, 1, 2]


def test_the_server_says_when_to_come_back(clock, longest_pauses):
    attempt, _ = failing(TransferFault("503", retry_after_seconds=7), TransferFault("reset"))
    with pytest.raises(ShardUnavailable):
        RetryPolicy(20.0, clock).run(attempt, "x.tar")
    assert 7 <= clock.pauses[0] <= 7.1, "a little later, since all ranks were told the same"
    assert clock.pauses[1] == 1


def test_a_server_that_asks_for_more_time_than_there_is_ends_it_at_once(clock):
    attempt, _ = failing(TransferFault("503", retry_after_seconds=3600))
    with pytest.raises(ShardUnavailable, match=r"after 1 attempts .* come back in 3600 s"):
        RetryPolicy(300.0, clock).run(attempt, "x.tar")
    assert clock.pauses == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (TransferFault("403", is_firm=True), ShardUnavailable),
        (TransferFault("404", is_wrong_file=True), ShardWrong),
    ],
)
def test_firm_faults_are_tried_three_times(clock, longest_pauses, fault, kind):
    attempt, made = failing(fault)
    with pytest.raises(ShardUnavailable) as given_up:
        RetryPolicy(300.0, clock).run(attempt, "x.tar")
    assert type(given_up.value) is kind and len(made) == 3


def test_a_loader_that_closes_waits_no_longer(clock):
    attempt, made = failing(TransferFault("reset"))
    clock.set()
    with pytest.raises(ShardUnavailable):
        RetryPolicy(300.0, clock).run(attempt, "x.tar")
    assert len(made) == 1


def test_the_message_names_file_attempts_budget_and_last_cause(clock, longest_pauses):
    attempt, _ = failing(TransferFault("reset"), TransferFault("the server answered 503"))
    told = r"^x\.tar cannot be read: gave up after 2 attempts in 0\.5 s \(data\.retry_seconds = 1\)"
    with pytest.raises(ShardUnavailable, match=told + "; last cause: the server answered 503$"):
        RetryPolicy(1.0, clock).run(attempt, "x.tar")
    with pytest.raises(ShardUnavailable, match=r"in 0\.5 s; last cause: the server answered 503$"):
        RetryPolicy(1.0, clock, option="").run(attempt, "x.tar")


def test_a_cause_holds_no_secrets():
    fault = TransferFault("GET https://me:hunter2@host/x.tar?sig=hunter2 failed: token=hunter2")
    assert str(fault) == "GET https://***@host/x.tar?... failed: token=***"


def test_other_errors_are_not_repeated(clock):
    made = []

    def attempt() -> None:
        made.append(1)
        raise MemoryError

    with pytest.raises(MemoryError):
        RetryPolicy(300.0, clock).run(attempt, "x.tar")
    assert made == [1]


@pytest.mark.parametrize(
    ("status", "is_firm", "is_wrong_file"),
    [
        *((status, False, False) for status in (408, 409, 425, 429, 500, 502, 503, 504)),
        *((status, True, False) for status in (400, 401, 403, 407, 451)),
        *((status, True, True) for status in (404, 410, 416)),
    ],
)
def test_which_answers_a_repeat_may_cure(status, is_firm, is_wrong_file):
    fault = fault_of_status(status, "Reason", {"Retry-After": "3"})
    assert (fault.is_firm, fault.is_wrong_file) == (is_firm, is_wrong_file)
    assert fault.retry_after_seconds == 3
    assert str(fault) == f"the server answered {status} Reason"


def test_retry_after_is_seconds_or_a_date():
    assert seconds_to_wait(None) is None and seconds_to_wait("soon") is None
    assert seconds_to_wait("2.5") == 2.5 and seconds_to_wait("-1") == 0
    wait = seconds_to_wait(formatdate(time.time() + 100, usegmt=True))
    assert wait is not None and 90 < wait <= 100
    assert seconds_to_wait(formatdate(time.time() - 100, usegmt=True)) == 0


class ClientError(Exception):
    """What botocore raises has this attribute."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__("An error occurred")
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        self.response = {"ResponseMetadata": metadata, "Error": {"Code": "SlowDown"}}


@pytest.mark.parametrize("make", [ClientError, of_aiohttp])
def test_what_clients_wrap_is_found(make):
    """s3fs raises its own OSError from botocore's errors, fsspec FileNotFoundError from others."""
    wrapped = FileNotFoundError("bucket/x.tar")
    wrapped.__cause__ = make(503, {"retry-after": "12", "Retry-After": "12"})
    fault = fault_of_error(wrapped)
    assert str(fault).startswith("the server answered 503")
    assert (fault.is_firm, fault.retry_after_seconds) == (False, 12)


@pytest.mark.parametrize(
    ("error", "is_firm", "is_wrong_file"),
    [
        (FileNotFoundError("x"), True, True),
        (PermissionError("x"), True, False),
        (ImportError("Install s3fs"), True, False),
        (ConnectionResetError("by peer"), False, False),
        (TimeoutError("x"), False, False),
        (TransferFault("x", is_firm=True), True, False),
    ],
)
def test_which_errors_a_repeat_may_cure(error, is_firm, is_wrong_file):
    fault = fault_of_error(error)
    assert (fault.is_firm, fault.is_wrong_file) == (is_firm, is_wrong_file)
