"""Transfers from a web server, from fsspec's memory and from commands, with faults on the way."""

import os
import random
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.location import ShardAccess
from data_pipeline.remote.faults import ShardUnavailable, ShardWrong
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import FileSink, Transfers
from data_pipeline.remote.transports import PIECE_BYTES
from tests.data_pipeline.fault_proxy import Fault, FaultProxy, fault_proxy, free_port
from tests.data_pipeline.quick_transfers import short_pauses, transfers_that_try
from tests.data_pipeline.range_server import RangeServer, range_server

DATA = random.Random(0).randbytes(3 * PIECE_BYTES + 1000)
MIDDLE = slice(PIECE_BYTES - 500, 2 * PIECE_BYTES + 500)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[RangeServer, FaultProxy]]:
    with range_server(x=DATA) as server, fault_proxy(server.port) as proxy:
        yield server, proxy


@pytest.fixture
def server(running, monkeypatch) -> RangeServer:
    short_pauses(monkeypatch)
    running[0].most_bytes, running[0].gives_ranges = 1 << 30, True
    return running[0]


@pytest.fixture
def proxy(running, server) -> FaultProxy:
    running[1].requests.clear()
    running[1].plan("/x", None)
    return running[1]


def transfers() -> Transfers:
    return Transfers(ShardAccess(retry_seconds=60.0), RemoteStatistics(), threading.Event())


def middle_of(url: str) -> bytearray:
    return transfers().read_range(url, MIDDLE.start, MIDDLE.stop - MIDDLE.start, len(DATA))


FAULTS = {
    "reset at once": Fault("reset"),
    "reset in mid-body": Fault("reset", after_bytes=300_000),
    "truncated body": Fault("truncate", after_bytes=300_000),
    "408": Fault("status", status=408),
    "429": Fault("status", status=429, headers={"Retry-After": "0"}),
    "500": Fault("status", status=500),
    "503": Fault("status", status=503, headers={"Retry-After": "0"}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_that_pass_are_outlived(proxy, kind):
    """Also more often than what a repeat seldom changes is tried."""
    proxy.plan("/x", *[FAULTS[kind]] * 4, None)
    assert middle_of(f"{proxy.url}/x") == DATA[MIDDLE]
    assert len(proxy.gets("/x")) == 5


LASTING = {
    "reset": (Fault("reset", after_bytes=1000), "ConnectionReset|IncompleteRead|Connection broken"),
    "truncated": (Fault("truncate", after_bytes=1000), "IncompleteRead|body ended"),
    "503": (Fault("status", status=503), "answered 503"),
    "stall": (Fault("stall", seconds=8), "[Tt]imed out"),
    "stall in mid-body": (Fault("stall", after_bytes=1000, seconds=8), "[Tt]imed out"),
    "trickle": (Fault("trickle", after_bytes=10, seconds=8), r"stalled: \d+ bytes|[Tt]imed out"),
}


@pytest.mark.parametrize("kind", LASTING)
def test_faults_that_last_end_in_a_clear_error(proxy, monkeypatch, kind):
    fault, cause = LASTING[kind]
    proxy.plan("/x", fault)
    stall_seconds = 0.2 if fault.kind in ("stall", "trickle") else 30.0
    asking = transfers_that_try(monkeypatch, 2, stall_seconds)
    with pytest.raises(ShardUnavailable) as refused:
        asking.read_range(f"{proxy.url}/x?sig=hunter2", 0, 5000, len(DATA))
    told = rf"^{proxy.url}/x\?\.\.\. cannot be read: gave up after 2 attempts in [\d.]+ s "
    told += rf"\(data.retry_seconds = 300\); last cause: .*({cause})"
    assert re.search(told, str(refused.value)), refused.value
    assert len(proxy.gets("/x")) == 2


def test_a_refused_connection_is_repeated(server, monkeypatch):
    """More often than what a repeat seldom changes: a server that restarts comes back."""
    asking = transfers_that_try(monkeypatch, 5)
    with pytest.raises(ShardUnavailable, match=r"after 5 .* last cause: .*[Cc]onnection refused"):
        asking.read_range(f"http://127.0.0.1:{free_port()}/x", 0, 5, 5)


def test_a_name_server_that_is_down_is_asked_again(server, monkeypatch):
    asked, real = [], socket.getaddrinfo

    def lookup(host: str, *arguments: object, **options: object):
        asked.append(host)
        if len(asked) <= 4:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert middle_of(f"http://host.invalid:{server.port}/x") == DATA[MIDDLE]
    asked.clear()
    asking = transfers_that_try(monkeypatch, 2)
    told = r"after 2 .* last cause: .*Name or service not known"
    with pytest.raises(ShardUnavailable, match=told):
        asking.read_range("http://other.invalid/x", 0, 5, 5)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, ShardUnavailable), (401, ShardUnavailable), (404, ShardWrong), (410, ShardWrong)],
)
def test_firm_answers_are_tried_three_times(proxy, status, kind):
    proxy.plan("/x", Fault("status", status=status))
    with pytest.raises(
        ShardUnavailable, match=rf"after 3 attempts .* answered {status}"
    ) as given_up:
        middle_of(f"{proxy.url}/x")
    assert type(given_up.value) is kind and len(proxy.gets("/x")) == 3


def sink_in(folder: Path) -> tuple[Path, FileSink]:
    path = folder / "x"
    return path, FileSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path))


def test_what_has_arrived_is_kept(proxy, tmp_path):
    path, sink = sink_in(tmp_path)
    proxy.plan("/x", Fault("truncate", after_bytes=2 * PIECE_BYTES + 70_000), None)
    transfers().copy(f"{proxy.url}/x", sink)
    assert path.read_bytes() == DATA
    assert proxy.gets("/x") == [None, f"bytes={2 * PIECE_BYTES}-"]


def test_a_server_that_gives_less_than_was_asked_for_is_asked_again(server, proxy):
    server.most_bytes = 400_000
    assert middle_of(f"{proxy.url}/x") == DATA[MIDDLE]
    assert len(proxy.gets("/x")) == 3


def test_a_server_without_ranges_gives_whole_files_only(server, proxy, tmp_path):
    server.gives_ranges = False
    path, sink = sink_in(tmp_path)
    proxy.plan("/x", Fault("truncate", after_bytes=2 * PIECE_BYTES), None)
    transfers().copy(f"{proxy.url}/x", sink)
    assert path.read_bytes() == DATA
    with pytest.raises(
        ShardUnavailable, match=r"3 attempts .* ranges of bytes; set data.cache_dir"
    ):
        middle_of(f"{proxy.url}/x")


def test_a_file_of_another_length_is_another_file(proxy):
    told = f"after 3 attempts .* it has {len(DATA)} bytes, the manifest says 5000"
    with pytest.raises(ShardWrong, match=told):
        transfers().read_range(f"{proxy.url}/x", 0, 5000, 5000)
    with pytest.raises(ShardWrong, match="more than the expected 4 bytes came"):
        transfers().read_range("pipe:echo hello", 0, 4, 4)


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("echo hello; exit 3", "the command ended with exit code 3"),
        ("sleep 3; echo hello", r"the command printed nothing for 0\.5 s"),
        ("echo hi", "the body ended at byte 3 of 6"),
    ],
)
def test_a_command_that_fails_stalls_or_gives_half_is_repeated(server, monkeypatch, command, cause):
    asking = transfers_that_try(monkeypatch, 2, 0.5 if "sleep" in command else 30.0)
    with pytest.raises(ShardUnavailable, match=f"a pipe: command .* after 2 .* {cause}"):
        asking.read_range(f"pipe:{command}", 0, 6, 6)


def test_sizes_are_asked_without_the_file(proxy):
    fsspec.filesystem("memory").pipe_file("/sizes/x", b"12345")
    assert transfers().size(f"{proxy.url}/x") == len(DATA)
    assert proxy.gets("/x") == ["bytes=0-0"]
    assert transfers().size("memory://sizes/x") == 5
    for url in (f"{proxy.url}/missing", "memory://sizes/missing"):
        with pytest.raises(ShardWrong, match="after 3 attempts"):
            transfers().size(url)


def test_a_file_system_that_never_answers_is_given_up(server, monkeypatch):
    released = threading.Event()

    def stand_still(*_: object, **__: object) -> bytes:
        released.wait(5)
        return b"12345"

    monkeypatch.setattr(MemoryFileSystem, "cat_file", stand_still)
    try:
        with pytest.raises(ShardUnavailable, match=r"after 2 .*stalled: no answer in 0\.1 s"):
            transfers_that_try(monkeypatch, 2, 0.1).read_range("memory://x", 0, 5, 5)
    finally:
        released.set()


def test_a_question_to_a_file_system_is_repeated(server):
    answers = [ConnectionResetError("by peer")] * 4

    def question(files: object, path: str) -> str:
        if answers:
            raise answers.pop()
        return path

    assert transfers().ask("memory://a/b", question) == "/a/b"
    with pytest.raises(ShardUnavailable, match="nosuch://a cannot be opened"):
        transfers().ask("nosuch://a", question)
