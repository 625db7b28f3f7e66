"""A web server in a thread that gives files from memory, whole or by ranges of bytes."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class RangeServer:
    """`files` by path; an answer holds `most_bytes` at most, and ranges are honoured or not."""

    files: dict[str, bytes] = field(default_factory=dict)
    most_bytes: int = 1 << 30
    gives_ranges: bool = True
    port: int = 0


@contextmanager
def range_server(**files: bytes) -> Iterator[RangeServer]:
    """Serve files by the path `/NAME`."""
    served = RangeServer({f"/{name}": data for name, data in files.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served.files.get(self.path.partition("?")[0])
            if data is None:
                return self._answer(404, b"", {})
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None or not served.gives_ranges:
                return self._answer(200, data, {})
            start = int(asked[1])
            end = min(int(asked[2] or len(data)) + 1, start + served.most_bytes, len(data))
            told = f"bytes {start}-{end - 1}/{len(data)}"
            self._answer(206, data[start:end], {"Content-Range": told})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join(10)
