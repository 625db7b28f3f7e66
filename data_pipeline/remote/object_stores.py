"""File systems of fsspec, made to repeat nothing by themselves and to wait no longer than told.

What their clients repeat on their own account would not honour Retry-After, and would hide from
`retries.py` how often and for how long a server refuses.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import TYPE_CHECKING, Any

import fsspec

from data_pipeline.remote.faults import fault_of_status

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 10.0
_S3_PROTOCOLS = ("s3", "s3a")
_GS_PROTOCOLS = ("gs", "gcs")


def connect(protocol: str, stall_seconds: float, **place: Any) -> Any:
    """A file system for a protocol; `place` are the arguments that a URL implies, as its host.

    Raises:
        Exception: fsspec does not know the protocol, or lacks a package for it.
    """
    if protocol in _S3_PROTOCOLS:
        return _s3(protocol, stall_seconds, **place)
    if protocol in _GS_PROTOCOLS:
        return _gs(protocol, stall_seconds, **place)
    return fsspec.filesystem(protocol, **place)


def _s3(protocol: str, stall_seconds: float, **place: Any) -> Any:
    limits = {
        "retries": {"max_attempts": 0},
        "connect_timeout": min(CONNECT_SECONDS, stall_seconds),
        "read_timeout": stall_seconds,
    }
    options = {"config_kwargs": limits | _configured(protocol, "config_kwargs"), **place}
    filesystem = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    filesystem.retries = 1
    return filesystem


def _gs(protocol: str, stall_seconds: float, **place: Any) -> Any:
    import aiohttp

    session = {"raise_for_status": _raise_fault} | _configured(protocol, "session_kwargs")
    timeout = aiohttp.ClientTimeout(total=stall_seconds, sock_connect=CONNECT_SECONDS)
    options = {"session_kwargs": session, "requests_timeout": timeout, **place}
    filesystem = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    # Its repeats are a decorator, and their number no option.
    filesystem._request = MethodType(inspect.unwrap(type(filesystem)._request), filesystem)
    return filesystem


def _configured(protocol: str, option: str) -> dict[str, Any]:
    """What the user's configuration of fsspec says about an option that is set here too."""
    configured: dict[str, Any] = fsspec.config.conf.get(protocol, {}).get(option, {})
    return configured


async def _raise_fault(answer: aiohttp.ClientResponse) -> None:
    """Refuse an answer while its headers are at hand: gcsfs's own errors have no Retry-After."""
    if answer.status >= 400 and answer.status != 404:  # that one it turns into FileNotFoundError
        answer.close()
        raise fault_of_status(answer.status, answer.reason, answer.headers)
