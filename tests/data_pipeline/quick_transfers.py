"""Transfers of sources with a small budget and short pauses."""

import threading

import aiohttp
import pytest

from data_pipeline import foreign_places
from data_pipeline.location import ShardAccess
from data_pipeline.remote import retries
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import Transfers
from data_pipeline.sources import remote_files

PAUSE_SECONDS = 0.02


def short_pauses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retries, "_jittered", lambda _: PAUSE_SECONDS)


def quick_transfers(patch: pytest.MonkeyPatch, retry_seconds: float = 60.0) -> None:
    """Let sources and foreign shards be read so in this process."""
    short_pauses(patch)
    access = ShardAccess(retry_seconds=retry_seconds)
    transfers = Transfers(access, RemoteStatistics(), threading.Event(), budget_option="")
    for module in (remote_files, foreign_places):
        patch.setattr(module, "source_transfers", lambda: transfers)


def of_aiohttp(status: int, headers: dict[str, str] | None = None) -> Exception:
    """What aiohttp raises for an answer with an error status."""
    return aiohttp.ClientResponseError(None, (), status=status, message="Slow", headers=headers)
