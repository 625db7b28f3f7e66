"""Transfers with short pauses, which give up after a number of attempts instead of a time."""

import threading

import aiohttp
import pytest
import tenacity

from data_pipeline import foreign_places
from data_pipeline.location import ShardAccess
from data_pipeline.remote import retries
from data_pipeline.remote.statistics import RemoteStatistics
from data_pipeline.remote.transfer import Transfers
from data_pipeline.sources import remote_files

PAUSE_SECONDS = 0.02


def short_pauses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retries, "_jittered", lambda _: PAUSE_SECONDS)


def transfers_that_try(
    patch: pytest.MonkeyPatch, attempts: int, stall_seconds: float = 30.0
) -> Transfers:
    """Transfers of which the first that fails so often ends them all, however slow the machine."""
    closing = threading.Event()

    def pause(state: tenacity.RetryCallState) -> float:
        if state.attempt_number == attempts:
            closing.set()
        return PAUSE_SECONDS

    patch.setattr(retries, "_jittered", pause)
    access = ShardAccess(stall_seconds=stall_seconds)
    return Transfers(access, RemoteStatistics(), closing)


def read_sources_by(patch: pytest.MonkeyPatch, transfers: Transfers) -> None:
    """Let sources and foreign shards be read so in this process."""
    for module in (remote_files, foreign_places):
        patch.setattr(module, "source_transfers", lambda: transfers)


def of_aiohttp(status: int, headers: dict[str, str] | None = None) -> Exception:
    """What aiohttp raises for an answer with an error status."""
    return aiohttp.ClientResponseError(None, (), status=status, message="Slow", headers=headers)
