"""The run that a training loop reports to.

Every call writes to a journal in the run folder and returns: no call waits for the network or
raises because of MLflow. A daemon thread sends the journal; what it could not send in time is sent
by the next start of the run, or by `python -m tracking.sync RUN_DIR`.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from configs.groups import TrackingConfig
from tracking.journal import Journal, encode_number, read_rows
from tracking.provenance import redact, run_tags
from tracking.record import RunRecord, TrackingFiles, forget_lost_rows, open_record
from tracking.sender import BackgroundSender, Sender
from tracking.store import prepare_environment, tracking_uri, ui_command

__all__ = ["TrackedRun", "check_settings", "start_run", "ui_command"]

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
EXIT_SECONDS = 20.0
# What closing a run counts on, so that large weights get the time they need.
UPLOAD_BYTES_PER_SECOND = 50e6
# Events that begin a process of the run.
STARTS = ("create", "resume")
# What the run folder's own files are called in MLflow; sent with every start.
START_FILES = ("config.yaml", "command.txt", "environment.json")


def check_settings(settings: TrackingConfig) -> None:
    """Refuse settings that can never work, without using the network; every rank may call it.

    Raises:
        RefusedInput: See `tracking.store.tracking_uri`.
    """
    if settings.enabled:
        tracking_uri(settings.uri)


class TrackedRun:
    """What `start_run` gives back; on all ranks but the main one its methods do nothing."""

    def __init__(self, files: TrackingFiles | None, background: BackgroundSender | None) -> None:
        """Use `start_run`."""
        self._files = files
        self._background = background
        self._last: dict[str, tuple[float | str, int, int]] = {}
        self._is_warned: set[str] = set()
        self._is_closed = files is None
        if files is not None:
            self._metrics = Journal(files.metrics)
            self._events = Journal(files.events)
            for row, _ in read_rows(files.metrics):
                self._remember(row.get("values", {}), row.get("time", 0), row.get("step", 0))
            self._steps_at_start = {name: step for name, (_, _, step) in self._last.items()}

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None while MLflow has not been reached."""
        return RunRecord.load(self._files.record).run_id if self._files else None

    @property
    def model_id(self) -> str | None:
        """The id of the MLflow model made from the last `log_weights`; None before it was sent."""
        return RunRecord.load(self._files.record).model_id if self._files else None

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of an optimizer step, now.

        A metric's step only moves forward: a value for a step that this metric already has, or for
        an earlier one, is left out. So a run that goes on from an older checkpoint does not record
        the steps in between a second time.
        """
        if self._is_closed:
            return
        fresh = {
            name: encode_number(value)
            for name, value in values.items()
            if self._is_fresh(name, step)
        }
        if fresh:
            now = _now_ms()
            self._remember(fresh, now, step)
            self._metrics.append({"time": now, "step": step, "values": fresh})

    def _is_fresh(self, name: str, step: int) -> bool:
        if name not in self._last or step > self._last[name][2]:
            return True
        if step > self._steps_at_start.get(name, -1) and name not in self._is_warned:
            logger.warning("%s at step %d is recorded already; left out", name, step)
            self._is_warned.add(name)
        return False

    def _remember(self, values: Mapping[str, float | str], now: int, step: int) -> None:
        for name, value in values.items():
            self._last[name] = (value, now, step)

    def _journal(self, kind: str, **facts: Any) -> None:
        if not self._is_closed:
            event = {"kind": kind, "id": uuid.uuid4().hex, "time": _now_ms()}
            self._events.append(event | facts)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a later value replaces an earlier one."""
        self._journal("tags", tags={key: str(value) for key, value in tags.items()})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file or folder with the run, in this folder of its artifacts.

        It is read when it is sent, so it must stay where it is.
        """
        self._journal("artifact", path=str(Path(path).absolute()), folder=folder)

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """Record which data was used; `context` says for what: "train", "validation", "test"."""
        self._journal("dataset", name=name, digest=digest, context=context)

    def log_weights(
        self,
        folder: Path,
        *,
        register_as: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Make a folder of exported weights (models.weights.save_weights) an MLflow model.

        Args:
            folder: The folder; it is read when it is sent, so it must stay where it is.
            register_as: Registered model that gets the weights as a new version, with the alias
                `newest`; None registers none.
            metrics: What the model reached, shown on its page. Those that the run has recorded with
                the same value are not recorded a second time.
        """
        now = _now_ms()
        shown = {}
        for name, value in (metrics or {}).items():
            last = self._last.get(name)
            number = encode_number(value)
            shown[name] = last if last and last[0] == number else (number, now, 0)
        path = str(Path(folder).absolute())
        self._journal("weights", path=path, register_as=register_as, metrics=shown)

    def link_transfer(
        self, pretrain_tags: Mapping[str, str], task: str, value: float, score: str = "top1"
    ) -> None:
        """Record the result of a transfer here and on the pretrained model.

        `pretrain_tags` are those of `tracking.lineage.resolve_weights`; `score` says what the value
        is, a fraction.
        """
        tags = {**pretrain_tags, "task": task}
        self._journal("transfer", tags=tags, task=task, score=score, value=encode_number(value))

    def close(self, status: Status = "FINISHED", timeout_seconds: float | None = None) -> bool:
        """End the run and send the rest, for a limited time; whether MLflow has everything.

        A second call does nothing. A run that is closed as "KILLED" (saved, to be started again)
        goes on in the same MLflow run at its next start.

        Args:
            status: What MLflow shows as the run's status.
            timeout_seconds: The limit; None means 20 s, and 20 s more for every GB of weights and
                other files that are still to be sent.
        """
        if self._is_closed or self._files is None:
            return True
        self._journal("close", status=status)
        self._is_closed = True
        self._metrics.close()
        self._events.close()
        if self._background is None:
            return True
        sender = self._background.sender
        if timeout_seconds is None:
            timeout_seconds = (
                EXIT_SECONDS + sender.remaining_upload_bytes() / UPLOAD_BYTES_PER_SECOND
            )
        if self._background.finish(timeout_seconds):
            return True
        rows, events = sender.remaining()
        logger.warning(
            "MLflow has not got %d metric rows and %d other records of this run; send them with: "
            "python -m tracking.sync %s",
            rows,
            events,
            self._files.run_dir,
        )
        return False

    def __enter__(self) -> "TrackedRun":
        """The run itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the run: FAILED after an error, KILLED after an interrupt or exit."""
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")


def start_run(
    run_dir: Path,
    settings: TrackingConfig,
    *,
    stage: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    is_main: bool,
) -> TrackedRun:
    """Start, or go on with, the tracked run of a run folder. Never waits for MLflow.

    Args:
        run_dir: The run folder. If it has been tracked before, the same MLflow run goes on; its
            params stay those of the first start, and what differs becomes tags `resumed.<param>`.
        settings: Where to send; with `enabled` off only the journals are written.
        stage: "pretrain" or "finetune".
        params: The resolved config, flat.
        tags: Further tags; commit, versions, command, host and Slurm ids are added.
        is_main: Whether this is global rank 0; every other rank gets a run that does nothing.

    Raises:
        RefusedInput: The store's URI can never work (see `tracking.store.tracking_uri`).
    """
    if not is_main:
        return TrackedRun(None, None)
    uri = tracking_uri(settings.uri) if settings.enabled else None
    prepare_environment()
    files = TrackingFiles(Path(run_dir).absolute())
    record = open_record(files, settings, stage, uri)
    background = BackgroundSender(Sender(files.run_dir, uri)) if uri else None
    run = TrackedRun(files, background)
    forget_lost_rows(files)
    clean_params = {key: redact(str(value)) for key, value in params.items()}
    all_tags = {"stage": stage, **run_tags(), **{key: str(value) for key, value in tags.items()}}
    _journal_start(run, record, files, clean_params, all_tags)
    for name in START_FILES:
        if (files.run_dir / name).exists():
            run.log_artifact(files.run_dir / name)
    if background is not None:
        background.start()
    return run


def _journal_start(
    run: TrackedRun,
    record: RunRecord,
    files: TrackingFiles,
    params: dict[str, str],
    tags: dict[str, str],
) -> None:
    """Journal the first start with its params, a later one with what differs from the first's."""
    starts = [event for event, _ in read_rows(files.events) if event.get("kind") in STARTS]
    tags = {**tags, "starts": str(len(starts) + 1)}
    if not starts:
        facts = {"experiment": record.experiment, "run_name": record.run_name}
        run._journal("create", params=params, tags=tags, **facts)
        return
    changed = {
        f"resumed.{key}": value
        for key, value in params.items()
        if starts[0].get("params", {}).get(key) != value
    }
    run._journal("resume", tags=tags | changed)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
