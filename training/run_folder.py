"""The run folder: where a run keeps everything it writes, and what is true about it.

Layout, `status.json` and exit codes: docs/run_folder.md. Every file here is replaced atomically, so
a reader (or a crash) never sees half of one.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from configs.durable_files import write_atomically
from configs.errors import RefusedInput
from configs.schema import ResumeChoice

logger = logging.getLogger(__name__)

RunState = Literal["running", "saved", "finished", "failed"]


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run and the small files that say how it is doing.

    Only the main process writes; the methods that write do nothing on the others.
    """

    path: Path
    is_main: bool = True

    @property
    def checkpoints(self) -> Path:
        """Folder of the training states (`training.checkpoint_store`)."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """Folder of the exported weights (`models.weights`)."""
        return self.path / "export"

    @property
    def export_average(self) -> Path:
        """Folder of the exported moving average of the weights, where one was kept."""
        return self.path / "export-ema"

    def status(self) -> dict[str, Any]:
        """Content of status.json; empty when the run never started."""
        return _read_json(self.path / "status.json")

    def finished(self) -> bool:
        """Whether the run reached its last step and wrote its results."""
        return self.status().get("state") == "finished"

    def has_checkpoint(self) -> bool:
        """Whether at least one checkpoint was completed (its files are not checked here)."""
        return any(self.checkpoints.glob("step-*/marker.json"))

    def is_used(self) -> bool:
        """Whether a run was started here before."""
        return bool(self.status()) or self.has_checkpoint()

    def write_status(self, state: RunState, step: int, **details: Any) -> None:
        """Write status.json: the truth about the run, whatever a launcher's exit code says.

        A full disk is reported and otherwise left to what must be saved: this file alone is no
        reason to end a run, nor may it hide why one ended.

        Raises:
            OSError: The run is finished, which has to be known, and that cannot be written.
        """
        record = {"state": state, "step": step, "time": _now(), **details}
        try:
            self._write_json("status.json", record)
        except OSError as error:
            if state == "finished":
                raise
            logger.error("cannot write %s: %s", self.path / "status.json", error)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json: what the run came to."""
        self._write_json("result.json", result)

    def write_start_files(
        self, config_yaml: str, command: str, environment: Mapping[str, Any] | None = None
    ) -> None:
        """Write config.yaml (resolved) and environment.json, and add a line to command.txt.

        A resumed run replaces the first two and keeps the lines of the starts before it.
        """
        if not self.is_main:
            return
        write_atomically(self.path / "config.yaml", config_yaml)
        with (self.path / "command.txt").open("a", encoding="utf-8") as file:
            file.write(f"{_now()}  {command}\n")
        if environment is not None:
            self._write_json("environment.json", environment)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the folder while the block runs; the operating system lets go when the process dies.

        Raises:
            RefusedInput: Another process owns it; the message names host, process and since when.
        """
        if not self.is_main:
            yield
            return
        owner_file = self.path / ".lock-owner.json"
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RefusedInput(self._who_holds_it(_read_json(owner_file))) from None
        try:
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            write_atomically(owner_file, json.dumps(owner))
            yield
        finally:
            owner_file.unlink(missing_ok=True)
            lock.release()

    def _who_holds_it(self, owner: dict[str, Any]) -> str:
        who = "another process"
        if owner:
            who = f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
        return (
            f"run folder {self.path} is in use by {who}; wait for it, stop it, "
            "or choose another folder with --run-dir"
        )

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        if self.is_main:
            write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")


def open_run_folder(path: Path, *, resume: ResumeChoice, is_main: bool) -> RunFolder:
    """Make the folder and check it against `resume`; checks and writes happen on the main process.

    Args:
        path: The run folder (`run_dir`).
        resume: "auto" takes any folder, "never" refuses a used one, "must" one without checkpoint.
        is_main: Whether this is the process that writes.

    Raises:
        RefusedInput: The folder does not fit `resume`, or cannot be made or written to.
    """
    folder = RunFolder(path, is_main)
    if not is_main:
        return folder
    if resume == "must" and not folder.has_checkpoint():
        raise RefusedInput(
            f"resume = must, but {path} has no checkpoint; check --run-dir, "
            "or start anew with --resume auto"
        )
    if resume == "never" and folder.is_used():
        raise RefusedInput(
            f"resume = never, but {path} already holds a run "
            f"(state: {folder.status().get('state', 'unknown')}); choose another --run-dir, "
            "remove the folder, or go on with --resume auto"
        )
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedInput(
            f"cannot make run folder {path}: {error.strerror}; choose another with --run-dir"
        ) from error
    return folder


def _now() -> str:
    """Local time with its offset from UTC, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
