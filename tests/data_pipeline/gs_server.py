"""A server on loopback that speaks the API of Google Cloud Storage (gcp-storage-emulator)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

# gcsfs reads it when it is imported: the kind of a bucket would be asked for by gRPC, which the
# server does not speak.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")


@contextmanager
def gs_server(*buckets: str) -> Iterator[int]:
    """Run one with empty buckets in a thread; gives its port."""
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    try:
        port = int(server._api._httpd.server_address[1])
        client = fsspec.filesystem("gs", **settings(port), skip_instance_cache=True)
        for bucket in buckets:
            client.mkdir(bucket)
        yield port
    finally:
        server.stop()


def settings(port: int) -> dict[str, object]:
    """What a file system of this server is made with."""
    return {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "test"}
