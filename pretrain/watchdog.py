"""Ending a run in which nothing happens any more, with what every rank was doing.

A rank that hangs leaves the others waiting in a collective for it, for half an hour until the
backend gives up, and without a word about the cause. Each rank's watchdog looks at its own progress
alone; when it has stood still too long it writes the stacks of all threads to the run folder, names
the rank that the others wait for, and ends the process.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

EXIT_STALLED = 75  # EX_TEMPFAIL of sysexits.h: worth another try

_FOLDER = "stalls"
_GRACE_SECONDS = 20.0  # at most, between the first and the last rank that notices
# What a thread waits for, by the innermost of its frames that lies in one of these files.
_WAITING_FOR = (
    ("data", ("/data_pipeline/",)),
    ("collective", ("/torch/distributed/", "/deepspeed/comm/", "/pretrain/step_vote.py")),
    ("disk", ("/training/checkpoint_", "/pretrain/saver.py", "/safetensors/")),
)


class Watchdog:
    """Watches one rank.

    Args:
        run_dir: The run folder; stacks go into `stalls/` in it.
        rank: This rank.
        world_size: Number of ranks.
        stall_seconds: Without a `beat` for so long, the process ends.
        on_stall: Called with a sentence by one of the ranks before it ends.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        world_size: int,
        stall_seconds: float,
        on_stall: Callable[[str], None],
    ) -> None:
        """Start watching."""
        self._folder = run_dir / _FOLDER
        self._rank = rank
        self._world_size = world_size
        self._stall_seconds = stall_seconds
        self._grace_seconds = min(_GRACE_SECONDS, stall_seconds)
        self._on_stall = on_stall
        self._main_thread = threading.main_thread().ident
        self._beat = (time.monotonic(), 0)
        self._closed = threading.Event()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._record(rank).unlink(missing_ok=True)  # of an earlier start
        # Kept open: what is written when even this class's thread cannot run.
        self._last_words = (self._folder / f"rank-{rank:05d}-frozen.txt").open("w")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """Say that something was achieved; costs nothing."""
        self._beat = (time.monotonic(), step)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        self._last_words.close()
        Path(self._last_words.name).unlink(missing_ok=True)

    def _watch(self) -> None:
        tick = min(self._stall_seconds / 4, 10.0)
        while not self._closed.wait(tick):
            seconds = time.monotonic() - self._beat[0]
            if seconds > self._stall_seconds:
                self._end(seconds)
            # Should a thread never give the interpreter back, this one cannot look again: then
            # Python's own watchdog, which needs no interpreter, writes the stacks and ends it.
            allowance = self._stall_seconds + 2 * tick + self._grace_seconds
            faulthandler.dump_traceback_later(allowance, exit=True, file=self._last_words)

    def _end(self, seconds: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        try:
            self._write_record(seconds)
            told = self._tell()
            if told is not None:
                self._on_stall(told)
        finally:  # whatever fails here, the process must end
            logging.shutdown()
            sys.stdout.flush()
            os._exit(EXIT_STALLED)

    def _write_record(self, seconds: float) -> None:
        frames = sys._current_frames()
        record = {
            "rank": self._rank,
            "step": self._beat[1],
            "seconds": round(seconds),
            "waits_for": waits_for(frames, self._main_thread),
        }
        stacks = (self._folder / f"rank-{self._rank:05d}.txt").open("w")
        with stacks:
            for thread in threading.enumerate():
                if thread.ident in frames and thread is not threading.current_thread():
                    stacks.write(f"thread {thread.name}\n")
                    stacks.writelines(traceback.format_stack(frames[thread.ident]))
                    stacks.write("\n")
        self._record(self._rank).write_text(json.dumps(record))

    def _tell(self) -> str | None:
        """The report, if this is the lowest rank that is able to make it."""
        deadline = time.monotonic() + self._grace_seconds
        records = self._records()
        while len(records) < self._world_size and time.monotonic() < deadline:
            time.sleep(0.2)
            records = self._records()
        if self._rank != min(records):
            return None
        return report(records, self._world_size, self._folder)

    def _records(self) -> dict[int, dict[str, Any]]:
        records = {}
        for rank in range(self._world_size):
            try:
                records[rank] = json.loads(self._record(rank).read_text())
            except (OSError, ValueError):
                continue  # not there, or being written
        return records

    def _record(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


def waits_for(frames: dict[int, FrameType], main_thread: int | None) -> str:
    """What the main thread waits for: "data", "collective" or "disk"; else "computation"."""
    stacks = [frames[main_thread]] if main_thread in frames else []
    # A backward pass on a GPU runs its hooks, and their collectives, in a thread of its own.
    stacks += [frame for ident, frame in frames.items() if ident != main_thread]
    main, *others = [_kind_of(stack) for stack in stacks] or ["computation"]
    if main == "computation" and "collective" in others:
        return "collective"
    return main


def report(records: dict[int, dict[str, Any]], world_size: int, folder: Path) -> str:
    """Say which rank the others wait for, from the records of those that wrote one."""
    silent = [rank for rank in range(world_size) if rank not in records]
    slowest = min(
        records.values(), key=lambda r: (r["step"], r["waits_for"] == "collective", r["rank"])
    )
    if silent:
        which = f"rank {', '.join(map(str, silent))} said nothing: it is stopped or dead"
    elif slowest["waits_for"] == "collective":
        which = f"all ranks wait in a collective at step {slowest['step']}"
    else:
        which = (
            f"the slowest is rank {slowest['rank']}, at step {slowest['step']}, "
            f"which waits for {slowest['waits_for']}"
        )
    seconds = max(record["seconds"] for record in records.values())
    return f"nothing happened for {seconds} s; {which}. Stacks of all ranks: {folder}"


def _kind_of(frame: FrameType | None) -> str:
    while frame is not None:
        name = frame.f_code.co_filename.replace(os.sep, "/")
        for kind, places in _WAITING_FOR:
            if any(place in name for place in places):
                return kind
        frame = frame.f_back
    return "computation"
