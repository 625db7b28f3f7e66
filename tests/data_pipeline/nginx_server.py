"""A real nginx on loopback that serves one folder."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data_pipeline.fault_proxy import free_port, listens, wait_until

_CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format plain '$request_method $uri $status $bytes_sent';
    access_log {folder}/access.log plain;
    client_body_temp_path {folder}/t1;
    proxy_temp_path {folder}/t2;
    fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4;
    scgi_temp_path {folder}/t5;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location /private/ {{ deny all; }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running server: `root` is what it serves."""

    port: int
    root: Path
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def num_requests(self, path_end: str) -> int:
        """GETs of paths with this end, answered with a body."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return sum(line.startswith("GET") and line.split()[1].endswith(path_end) for line in lines)


@contextmanager
def nginx_serving(root: Path, folder: Path) -> Iterator[Nginx]:
    """Serve `root`; configuration and logs lie in `folder`."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    folder.mkdir(parents=True, exist_ok=True)
    server = Nginx(free_port(), root, folder)
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=server.port, root=root))
    process = subprocess.Popen(
        [binary, "-p", folder, "-e", folder / "error.log", "-c", config],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listens(server.port))
        yield server
    finally:
        process.terminate()
        process.wait(30)
