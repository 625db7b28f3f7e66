"""A small HTTP proxy for one upstream server that does wrong what it is told to do wrong."""

import http.client
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What becomes of a request: an own status, or the upstream's body spoiled after some bytes."""

    kind: str  # status, reset, truncate, stall, corrupt, trickle
    after_bytes: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 30.0


class FaultProxy:
    """Forwards requests; the faults of a path are used up one request each, the last for ever.

    `requests` lists (method, path, Range header) of all that came.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests: list[tuple[str, str, str | None]] = []
        self._faults: dict[str, list[Fault | None]] = {}
        self._lock = threading.Lock()
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def plan(self, path_end: str, *faults: Fault | None) -> None:
        """Faults for paths with this end, in order; the last one stays (None: none)."""
        self._faults[path_end] = list(faults)

    def fault_for(self, method: str, path: str, range_header: str | None) -> Fault | None:
        with self._lock:
            self.requests.append((method, path, range_header))
            for end, faults in self._faults.items():
                if path.partition("?")[0].endswith(end):
                    return faults.pop(0) if len(faults) > 1 else faults[0]
        return None

    def gets(self, path_end: str) -> list[str | None]:
        """Range headers of the GETs of paths with this end."""
        return [r for method, path, r in self.requests if method == "GET" and path_end in path]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def fault_proxy(upstream_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fault = proxy.fault_for(self.command, self.path, self.headers.get("Range"))
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault is not None and fault.kind == "status":
                return self._answer(fault.status, fault.headers, b"no")
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=30)
            upstream.request(self.command, self.path, body=sent, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length")
            }
            length = answer.getheader("Content-Length") or str(len(body))
            upstream.close()
            self._answer(answer.status, {**headers, "Content-Length": length}, body, fault)

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def _answer(
            self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None
        ) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault is None:
                self.wfile.write(body)
            else:
                getattr(self, f"_{fault.kind}")(body, fault)

        def _reset(self, body: bytes, fault: Fault) -> None:
            self._some(body, fault)
            # Closing with unsent linger of zero sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True

        def _truncate(self, body: bytes, fault: Fault) -> None:
            self._some(body, fault)
            self.close_connection = True

        def _stall(self, body: bytes, fault: Fault) -> None:
            self._some(body, fault)
            proxy.released.wait(fault.seconds)
            self.close_connection = True

        def _trickle(self, body: bytes, fault: Fault) -> None:
            self._some(body, fault)
            deadline = time.monotonic() + fault.seconds
            while time.monotonic() < deadline and not proxy.released.wait(0.05):
                self.wfile.write(body[:1])
                self.wfile.flush()
            self.close_connection = True

        def _corrupt(self, body: bytes, fault: Fault) -> None:
            at = min(fault.after_bytes, len(body) - 1)
            self.wfile.write(body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :])

        def _some(self, body: bytes, fault: Fault) -> None:
            self.wfile.write(body[: fault.after_bytes])
            self.wfile.flush()

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, ValueError):  # the client went away, or we closed on it
                pass

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                pass

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
