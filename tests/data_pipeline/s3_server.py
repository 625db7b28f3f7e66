"""A server on loopback that speaks S3 (moto), for processes that know it by their environment."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

SERVER_SECONDS = 240


@contextmanager
def s3_server(*buckets: str) -> Iterator[dict[str, str]]:
    """Start one with empty buckets; gives the environment variables of its clients."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    )
    try:
        wait_until_open(port, server)
        for bucket in buckets:
            make_bucket(bucket, environment)
        yield environment
    finally:
        server.kill()
        server.wait(30)


def wait_until_open(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not answer"
        with closing(socket.socket()) as attempt:
            attempt.settimeout(5)
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def make_bucket(name: str, environment: dict[str, str]) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=name)
