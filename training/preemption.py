"""Stop requests from outside: signals, and launchers that die without passing a signal on.

Handlers only set a flag. Ranks are signalled one after the other, or not at all, so a collective
inside a handler would deadlock; the loop asks `stop_requested` at a step boundary, lets all ranks
agree (`training.processes.any_rank`), saves and leaves with `EXIT_SAVED`. Nothing heavy is imported
here: handlers are installed before torch, whose import takes long enough to be signalled in.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

EXIT_SAVED = 85
"""Exit code of a run that was told to stop, saved its state and can simply be started again."""

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)

_LAUNCHER_WORDS = frozenset({"deepspeed", "torchrun", "accelerate"})
_LAUNCHER_MODULES = ("deepspeed.launcher", "torch.distributed", "accelerate.commands")

_reason: str | None = None


def stop_requested() -> str | None:
    """Why this process was asked to stop ("SIGTERM", "parent is gone ..."), or None."""
    return _reason


def install_stop_handlers(*, watch_parent: bool = False, poll_seconds: float = 0.5) -> None:
    """Turn USR1, USR2 and TERM into a flag; call it from the main thread, before slow imports.

    Args:
        watch_parent: Also ask to stop when a launcher above this process (`deepspeed`, its inner
            launcher, `torchrun`, `accelerate launch`) ends. `deepspeed` dies at once on SIGTERM and
            leaves its ranks running, unsignalled. A shell above the launcher is not watched, so
            `nohup` works as ever.
        poll_seconds: Time between two looks at the launchers.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _on_signal)
    if watch_parent and (launchers := _launchers_above()):
        watcher = threading.Thread(
            target=_watch, args=(launchers, poll_seconds), name="launcher-watch", daemon=True
        )
        watcher.start()


def _request_stop(reason: str) -> None:
    global _reason
    if _reason is None:
        _reason = reason


def _on_signal(number: int, _frame: FrameType | None) -> None:
    _request_stop(signal.Signals(number).name)


def _launchers_above() -> list[psutil.Process]:
    """The unbroken line of launcher processes above this one, nearest first."""
    import psutil

    launchers = []
    for process in psutil.Process(os.getpid()).parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            break
        if not _is_launcher(words):
            break
        launchers.append(process)
    return launchers


def _is_launcher(words: Sequence[str]) -> bool:
    """Whether a command line is a Python process that runs a launcher.

    A shell that was given the launcher's name as text (`sh -c "deepspeed ..."`) is not one.
    """
    if not words or not os.path.basename(words[0]).startswith("python"):
        return False
    return any(
        os.path.basename(word) in _LAUNCHER_WORDS or word.startswith(_LAUNCHER_MODULES)
        for word in words[1:4]
    )


def _watch(launchers: Sequence[psutil.Process], poll_seconds: float) -> None:
    while _reason is None:
        for launcher in launchers:
            if not _is_alive(launcher):
                _request_stop(f"parent is gone (launcher process {launcher.pid} has ended)")
                return
        time.sleep(poll_seconds)


def _is_alive(process: psutil.Process) -> bool:
    """False also for a zombie: a dead launcher whose own parent has not yet asked after it."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
