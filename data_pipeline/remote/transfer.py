"""Brings byte ranges and whole files here: what has arrived is kept over every fault."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from configs.errors import RefusedInput
from data_pipeline.location import COMMAND_PREFIX, ShardAccess, shown
from data_pipeline.remote.faults import ShardUnavailable, ShardWrong, TransferFault
from data_pipeline.remote.retries import FIRM_ATTEMPTS, RetryPolicy
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transports import (
    PIECE_BYTES,
    Answer,
    CommandTransport,
    FsspecTransport,
    HttpTransport,
    Transport,
)

Result = TypeVar("Result")


class Sink(Protocol):
    """Where arriving bytes go, in order."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""

    def restart(self) -> None:
        """Forget all bytes; the first one comes next."""


class MemorySink:
    """Bytes in memory."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Append."""
        self.data += data

    def restart(self) -> None:
        """Begin anew."""
        self.data.clear()


class FileSink:
    """Bytes in an open file, with their digest; the file may already have its full length.

    `name` and `room`, which says how to make some on a full disk, are for messages.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        room: str = "lower data.cache_bytes or move data.cache_dir",
    ) -> None:
        """Begin at byte 0."""
        self._descriptor = descriptor
        self._name = name
        self._room = room
        self.restart()

    def write(self, data: bytes) -> None:
        """Write behind what is there.

        Raises:
            RefusedInput: The disk is full, or does not take it for another reason.
        """
        self._digest.update(data)
        try:
            while data:
                written = os.write(self._descriptor, data)
                data = data[written:]
        except OSError as error:
            raise RefusedInput(
                f"{self._name} cannot be written: {error.strerror}; make room there, {self._room}"
            ) from error

    def restart(self) -> None:
        """Begin anew at byte 0."""
        self._digest = hashlib.sha256()
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def sha256(self) -> str:
        """SHA-256 (hex) of all bytes written."""
        return self._digest.hexdigest()


@dataclass
class _Part:
    """The bytes `[start, end)` of a file as far as they have arrived; `end` None: not known yet."""

    start: int
    end: int | None
    sink: Sink
    arrived: int = 0
    most_arrived: int = 0
    is_complete: bool = False

    def begin(self, answer: Answer, expected_bytes: int | None) -> None:
        """Make ready for the body of an answer."""
        told = answer.total_bytes
        if expected_bytes is not None and told is not None and told != expected_bytes:
            raise TransferFault(
                f"it has {told} bytes, the manifest says {expected_bytes}", is_wrong_file=True
            )
        if answer.first_byte == self.start + self.arrived:
            return
        if self.start or answer.first_byte:
            raise TransferFault(
                "the server does not give ranges of bytes; set data.cache_dir, so that whole "
                "shards are fetched",
                is_firm=True,
            )
        self.sink.restart()
        self.arrived = 0

    def take(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        if self.end is not None and self.start + self.arrived + len(piece) > self.end:
            raise TransferFault(f"more than the expected {self.end} bytes came", is_wrong_file=True)
        self.sink.write(piece)
        self.arrived += len(piece)

    def finish(self, answer: Answer) -> None:
        """Check, when a body has ended, that all has arrived."""
        end = answer.total_bytes if self.end is None else self.end
        if end is not None and self.start + self.arrived < end:
            raise TransferFault(f"the body ended at byte {self.start + self.arrived} of {end}")
        self.is_complete = True

    def has_advanced(self) -> bool:
        """Whether a piece more has arrived than at the last call, however often it was begun."""
        advanced = self.arrived >= self.most_arrived + PIECE_BYTES
        if advanced:
            self.most_arrived = self.arrived
        return advanced


class Transfers:
    """Reads remote files, repeating what fails.

    Args:
        access: time limits.
        statistics: what is counted.
        closing: when it is set, no attempt is repeated any more.
        budget_option: what sets `access.retry_seconds`, for messages; "" if nothing does.
    """

    def __init__(
        self,
        access: ShardAccess,
        statistics: RemoteStatistics,
        closing: threading.Event,
        budget_option: str = "data.retry_seconds",
    ) -> None:
        """Connect to nothing yet."""
        self._statistics = statistics
        self._closing = closing
        self._retries = RetryPolicy(
            access.retry_seconds, closing, lambda: statistics.add(retries=1), budget_option
        )
        self._http = HttpTransport(access.stall_seconds)
        self._fsspec = FsspecTransport(access.stall_seconds)
        self._commands = CommandTransport(access.stall_seconds)

    def read_range(self, location: str, start: int, size: int, file_bytes: int) -> bytearray:
        """`size` bytes from byte `start` on, of a file that should have `file_bytes`.

        Raises:
            ShardUnavailable: They did not come within the budget of time.
            ShardWrong: The file is missing or has another size.
        """
        sink = MemorySink()
        if size:
            self._receive(location, _Part(start, start + size, sink), file_bytes)
        return sink.data

    def read_all(self, location: str) -> bytearray:
        """All bytes of a file.

        Raises:
            ShardUnavailable: They did not come within the budget of time.
        """
        sink = MemorySink()
        self.copy(location, sink)
        return sink.data

    def size(self, location: str) -> int | None:
        """Size of a file in bytes; None if its server does not tell.

        Raises:
            ShardUnavailable: No answer came within the budget of time.
            ShardWrong: There is no such file.
        """
        transport = self._http if _is_http(location) else self._fsspec
        return self._retries.run(lambda: transport.size(location), shown(location))

    def ask(self, url: str, question: Callable[[Any, str], Result]) -> Result:
        """The answer to a question about a place: a function of fsspec's file system and the path.

        Raises:
            ShardUnavailable: No answer came within the budget of time.
            ShardWrong: There is no such place.
        """
        return self._retries.run(lambda: self._fsspec.ask(url, question), shown(url))

    def copy(self, location: str, sink: Sink) -> None:
        """Write a whole file of unknown size.

        Raises:
            ShardUnavailable: It did not come within the budget of time.
            RefusedInput: The disk does not take it.
        """
        self._receive(location, _Part(0, None, sink), None)

    def download(
        self, location: str, sink: FileSink, expected_bytes: int, expected_sha256: str
    ) -> None:
        """Write a whole file of known size and digest; wrong bytes are fetched anew a few times.

        Raises:
            ShardUnavailable: It did not come within the budget of time.
            ShardWrong: It is missing, or has another size or digest.
            RefusedInput: The disk does not take it.
        """
        for _ in range(FIRM_ATTEMPTS):
            sink.restart()
            self._receive(location, _Part(0, expected_bytes, sink), expected_bytes)
            found = sink.sha256()
            if found == expected_sha256:
                return
            self._statistics.add(retries=1)
        raise ShardWrong(
            f"{shown(location)} has wrong bytes: {FIRM_ATTEMPTS} attempts, the last with SHA-256 "
            f"{found}, the manifest says {expected_sha256}; upload the shard again"
        )

    def _receive(self, location: str, part: _Part, expected_bytes: int | None) -> None:
        while not part.is_complete:
            self._retries.run(
                lambda: self._attempt(location, part, expected_bytes), shown(location)
            )

    def _attempt(self, location: str, part: _Part, expected_bytes: int | None) -> None:
        """One request for what is missing; one that brought at least a piece is no failure."""
        try:
            with self._transport(location).open(
                location, part.start + part.arrived, part.end
            ) as answer:
                part.begin(answer, expected_bytes)
                for piece in answer.pieces:
                    if self._closing.is_set():
                        raise ShardUnavailable(f"{shown(location)}: the loader was closed")
                    part.take(piece)
                    self._statistics.add(bytes_fetched=len(piece))
                part.finish(answer)
        except TransferFault as fault:
            if fault.is_firm or not part.has_advanced():
                raise
            self._statistics.add(retries=1)

    def _transport(self, location: str) -> Transport:
        if location.startswith(COMMAND_PREFIX):
            return self._commands
        return self._http if _is_http(location) else self._fsspec


def _is_http(location: str) -> bool:
    return location.startswith(("http://", "https://"))
