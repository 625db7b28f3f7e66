"""How bytes come from each kind of place: http(s), anything that fsspec opens, a command's output.

A transport opens bytes `[start, end)` of a file as an `Answer`, and makes a `TransferFault` of all
that goes wrong on the way. It repeats nothing; `transfer.py` does.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import fsspec
import requests
import urllib3

from data_pipeline.location import COMMAND_PREFIX, shown
from data_pipeline.remote.faults import (
    ShardUnavailable,
    TransferFault,
    fault_of_error,
    fault_of_status,
)
from data_pipeline.remote.object_stores import CONNECT_SECONDS, connect

# The unit of progress: this much must arrive within `stall_seconds`, or the whole rest.
PIECE_BYTES = 1 << 20
_OBJECT_PIECE_BYTES = 8 * PIECE_BYTES

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """A body on its way. `total_bytes` is the whole file's size, if the server tells it."""

    first_byte: int
    total_bytes: int | None
    pieces: Iterator[bytes]


class Transport(Protocol):
    """Opens files of one kind."""

    def open(self, url: str, start: int, end: int | None) -> AbstractContextManager[Answer]:
        """Ask for bytes `[start, end)` (`end` None: to the end); the answer may begin earlier.

        Raises:
            TransferFault: Here or while the pieces are taken.
        """


class HttpTransport:
    """http and https; proxies, certificates and ~/.netrc as `requests` finds them."""

    def __init__(self, stall_seconds: float) -> None:
        """Connect to nothing yet."""
        self._stall_seconds = stall_seconds
        self._timeout = (min(CONNECT_SECONDS, stall_seconds), stall_seconds)
        # requests does not promise that a session may be shared by threads.
        self._local = threading.local()

    @contextmanager
    def open(self, url: str, start: int, end: int | None) -> Iterator[Answer]:
        """One GET, of a range unless the whole file is asked for."""
        # Compressed on the way, a body would have neither offsets nor its length.
        headers = {"Accept-Encoding": "identity"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        try:
            response = self._session().get(url, headers=headers, stream=True, timeout=self._timeout)
        except (requests.RequestException, OSError) as error:
            raise _fault_of_request(error) from error
        with closing(response):
            if response.status_code not in (200, 206):
                raise fault_of_status(response.status_code, response.reason, response.headers)
            first_byte, total_bytes = _extent(response)
            yield Answer(first_byte, total_bytes, self._pieces(response.raw))

    def size(self, url: str) -> int | None:
        """Size of a file in bytes, None if the server does not tell; raises like `open`."""
        # Not by HEAD, which signed URLs and some servers refuse.
        with self.open(url, 0, 1) as answer:
            return answer.total_bytes

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session

    def _pieces(self, body: urllib3.HTTPResponse) -> Iterator[bytes]:
        while piece := self._piece(body):
            yield piece

    def _piece(self, body: urllib3.HTTPResponse) -> bytes:
        """The next piece, shorter only at the end; a body that trickles counts as stalled."""
        piece, started = bytearray(), time.monotonic()
        while len(piece) < PIECE_BYTES:
            try:
                # read1 comes back with what is there; read would wait for all of it.
                part = body.read1(PIECE_BYTES - len(piece), decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise fault_of_error(error) from error
            if not part:
                break
            piece += part
            if time.monotonic() - started > self._stall_seconds:
                raise TransferFault(
                    f"stalled: {len(piece)} bytes in {self._stall_seconds:g} s (data.stall_seconds)"
                )
        return bytes(piece)


class FsspecTransport:
    """s3, gs, and every other protocol that fsspec knows."""

    def __init__(self, stall_seconds: float) -> None:
        """Connect to nothing yet."""
        self._stall_seconds = stall_seconds
        self._filesystems: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    @contextmanager
    def open(self, url: str, start: int, end: int | None) -> Iterator[Answer]:
        """Range reads, one after the other."""
        filesystem, path = self._filesystem(url)
        total_bytes = None
        if end is None:
            end = total_bytes = int(self._call(lambda: filesystem.info(path)["size"]))
        yield Answer(start, total_bytes, self._pieces(filesystem, path, start, end))

    def size(self, url: str) -> int | None:
        """Size of a file in bytes, None if the server does not tell; raises like `open`."""
        filesystem, path = self._filesystem(url)
        size: int | None = self._call(lambda: filesystem.info(path)["size"])
        return size

    def ask(self, url: str, question: Callable[[Any, str], Result]) -> Result:
        """The answer of a file system to a question about a path in it; raises like `open`.

        It may take any time: a listing can be thousands of requests, each with its own limit.
        """
        filesystem, path = self._filesystem(url)
        try:
            return question(filesystem, path)
        except Exception as error:  # clients of object stores raise many kinds
            raise fault_of_error(error) from error

    def _filesystem(self, url: str) -> tuple[Any, str]:
        protocol = url.partition("://")[0]
        with self._lock:
            try:
                # Of some protocols the host is an argument of the file system (ftp, hdfs).
                place = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(url)
                key = (protocol, *sorted(place.items()))
                if key not in self._filesystems:
                    self._filesystems[key] = connect(protocol, self._stall_seconds, **place)
                filesystem = self._filesystems[key]
                return filesystem, filesystem._strip_protocol(url)
            except (
                ImportError,
                ValueError,
            ) as error:  # a package is missing
                raise ShardUnavailable(f"{shown(url)} cannot be opened: {error}") from error
            except Exception as error:  # every file system has its own
                raise fault_of_error(error) from error

    def _pieces(self, filesystem: Any, path: str, start: int, end: int) -> Iterator[bytes]:
        for offset in range(start, end, _OBJECT_PIECE_BYTES):
            stop = min(offset + _OBJECT_PIECE_BYTES, end)
            piece = self._call(partial(filesystem.cat_file, path, start=offset, end=stop))
            yield piece
            if len(piece) < stop - offset:
                filesystem.invalidate_cache()  # of sizes that a listing told
                size = int(self._call(lambda: filesystem.info(path)["size"]))
                if size < stop:
                    raise TransferFault(f"it has only {size} bytes", is_wrong_file=True)
                return

    def _call(self, function: Callable[[], Result]) -> Result:
        """The result of a call of a file system, which may have no timeout of its own."""
        outcome: list[Result | BaseException] = []

        def run() -> None:
            try:
                outcome.append(function())
            except BaseException as error:  # raised anew where it is waited for
                outcome.append(error)

        thread = threading.Thread(target=run, name="vitrain-fsspec", daemon=True)
        thread.start()
        thread.join(self._stall_seconds)
        if not outcome:
            raise TransferFault(
                f"stalled: no answer in {self._stall_seconds:g} s (data.stall_seconds)"
            )
        if isinstance(outcome[0], BaseException):
            raise fault_of_error(outcome[0]) from outcome[0]
        return outcome[0]


class CommandTransport:
    """The output of `pipe:` commands; only what `locate_shard` let through comes here."""

    def __init__(self, stall_seconds: float) -> None:
        """Run nothing yet."""
        self._stall_seconds = stall_seconds

    @contextmanager
    def open(self, url: str, start: int, end: int | None) -> Iterator[Answer]:  # noqa: ARG002
        """Run the command in a shell; its output always begins at byte 0."""
        process = subprocess.Popen(
            url.removeprefix(COMMAND_PREFIX),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may print what it was given: addresses with secrets
            start_new_session=True,
        )
        try:
            yield Answer(0, None, self._pieces(process))
        finally:
            if process.poll() is None:
                # The shell's children too: they hold the pipe.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _pieces(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        assert process.stdout is not None
        output = process.stdout.fileno()
        while True:
            ready, _, _ = select.select([output], [], [], self._stall_seconds)
            if not ready:
                raise TransferFault(f"the command printed nothing for {self._stall_seconds:g} s")
            piece = os.read(output, PIECE_BYTES)
            if not piece:
                break
            yield piece
        try:
            code = process.wait(self._stall_seconds)
        except subprocess.TimeoutExpired:
            raise TransferFault("the command closed its output and did not end") from None
        if code != 0:
            raise TransferFault(f"the command ended with exit code {code}")


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """First byte of a body, and the size of the whole file if it is told."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    described = response.headers.get("Content-Range", "")
    first, _, rest = described.removeprefix("bytes ").partition("-")
    total = rest.partition("/")[2]
    if not first.isdigit():
        raise TransferFault(f"the server answered 206 with Content-Range {described!r}")
    return int(first), int(total) if total.isdigit() else None


def _fault_of_request(error: Exception) -> TransferFault:
    if isinstance(error, requests.exceptions.SSLError):
        return TransferFault(f"SSLError: {error}", is_firm=True)
    # requests' own text repeats the URL and buries the reason.
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return fault_of_error(reason if isinstance(reason, BaseException) else error)
