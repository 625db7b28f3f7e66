"""From the journals to MLflow: in order, at least once, and only what MLflow confirmed counts."""

import logging
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tracking.events import APPLY, Event, Target, clean_name
from tracking.journal import Row, count_rows, read_rows
from tracking.provenance import redact
from tracking.record import RunRecord, Sent, TrackingFiles
from tracking.store import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

METRICS_PER_CALL = 500
ROWS_PER_ROUND = 200
IDLE_SECONDS = 2.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0
CLOSING_RETRY_SECONDS = 1.0


class Stopped(Exception):
    """Sending was told to stop between two calls."""


class Sender:
    """Sends what a run folder's journals hold beyond what MLflow already has."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        """`uri` may hold credentials; it is never written to a file."""
        self.files = TrackingFiles(run_dir)
        self.uri = uri
        self._client: MlflowClient | None = None
        self._is_run_known = False
        self.stop = threading.Event()

    def remaining(self) -> tuple[int, int]:
        """Metric rows and other events that MLflow does not have yet."""
        sent = Sent.load(self.files.sent)
        return (
            count_rows(self.files.metrics, sent.metrics),
            count_rows(self.files.events, sent.events),
        )

    def remaining_upload_bytes(self) -> int:
        """Size of the weights and other files that are still to be sent."""
        total = 0
        for event, _ in read_rows(self.files.events, Sent.load(self.files.sent).events):
            path = Path(event.get("path", self.files.sent))
            files = path.rglob("*") if path.is_dir() else [path]
            total += sum(file.stat().st_size for file in files if file.is_file())
        return total

    def send(self) -> None:
        """Send everything there is now. Blocks on the network.

        Raises:
            Exception: Whatever MLflow raises when it cannot be reached; what was confirmed before
                stays sent, and the next call goes on from there.
            Timeout: Another process is sending this run folder.
        """
        if self.remaining() == (0, 0):
            return
        if self._client is None:
            self._client = open_client(self.uri)
        with FileLock(self.files.lock, timeout=0):
            # Read anew under the lock: another process may have sent in between.
            record, sent = RunRecord.load(self.files.record), Sent.load(self.files.sent)
            target = Target(self._client, self.uri, record)
            try:
                self._check_run_exists(target, sent)
                while self._send_one_event(target, sent):
                    pass
            except Exception:
                # The server may come back with another database.
                self._is_run_known = False
                raise

    def _check_run_exists(self, target: Target, sent: Sent) -> None:
        """Start from the journals' beginning if this store does not know the run (a new store)."""
        from mlflow.exceptions import MlflowException

        if target.record.run_id is None:
            sent.metrics = sent.events = 0
            return
        if self._is_run_known:
            return
        try:
            run = target.client.get_run(target.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning(
                "MLflow at %s does not know run %s: a new run gets the whole history",
                redact(self.uri),
                target.run_id,
            )
            target.record.run_id = target.record.model_id = None
            sent.metrics = sent.events = 0
            sent.save(self.files.sent)
            target.record.save(self.files.record)
        else:
            if run.info.lifecycle_stage == "deleted":
                raise RuntimeError(
                    f"MLflow run {target.run_id} is deleted; restore it with "
                    f"mlflow runs restore --run-id {target.run_id}"
                )
            self._is_run_known = True

    def _send_one_event(self, target: Target, sent: Sent) -> bool:
        """Send the metrics written so far, then one event; whether there was one."""
        if target.record.run_id is not None:
            self._send_metrics(target, sent)
        row, offset = next(read_rows(self.files.events, sent.events), (None, 0))
        if row is None:
            return False
        self._apply(target, row)
        target.record.uri = redact(self.uri)
        target.record.save(self.files.record)
        sent.events = offset
        sent.save(self.files.sent)
        return True

    def _apply(self, target: Target, event: Event) -> None:
        """Send an event; one that can never succeed is reported and left out."""
        from mlflow.exceptions import MlflowException

        self._check_stop()
        kind = str(event.get("kind"))
        try:
            APPLY[kind](target, event)
        except (MlflowException, KeyError, TypeError, ValueError, FileNotFoundError) as error:
            if kind == "create" or not _is_hopeless(error):
                raise
            logger.warning("MLflow: %s was left out: %s", kind, failure_reason(error))

    def _send_metrics(self, target: Target, sent: Sent) -> None:
        rows: list[Row] = []
        offset = sent.metrics
        for row, end in read_rows(self.files.metrics, sent.metrics):
            rows.append(row)
            offset = end
            if len(rows) == ROWS_PER_ROUND:
                self._send_rows(target, rows)
                rows = []
                sent.metrics = offset
                sent.save(self.files.sent)
        if rows:
            self._send_rows(target, rows)
        if offset != sent.metrics:
            sent.metrics = offset
            sent.save(self.files.sent)

    def _send_rows(self, target: Target, rows: list[Row]) -> None:
        metrics = [metric for row in rows for metric in _metrics(row)]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._check_stop()
            target.client.log_batch(target.run_id, metrics[start : start + METRICS_PER_CALL])

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped


def _metrics(row: Row) -> "list[Metric]":
    from mlflow.entities import Metric

    try:
        time_ms, step = int(row["time"]), int(row["step"])
        return [
            Metric(clean_name(name), float(value), time_ms, step)
            for name, value in row["values"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        logger.warning("a row of the metrics journal is not one and is passed over: %s", row)
        return []


def _is_hopeless(error: Exception) -> bool:
    """Whether sending the same thing again could never work."""
    code = getattr(error, "error_code", None)
    return code == "INVALID_PARAMETER_VALUE" if code is not None else True


def failure_reason(error: BaseException) -> str:
    """What went wrong, in one line without credentials; the network's own words if it was that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):
            return str(cause) or type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    # Redacted before it is cut: half an address would not be recognised.
    return " ".join(redact(f"{type(error).__name__}: {error}").split())[:300]


class BackgroundSender(threading.Thread):
    """A daemon thread that keeps MLflow up to date; nothing it meets reaches the training loop."""

    def __init__(self, sender: Sender) -> None:
        """Call `start` to begin."""
        super().__init__(name="mlflow-sender", daemon=True)
        self.sender = sender
        self._wake = threading.Event()
        self._is_closing = False
        self._failures = 0
        self.last_problem = "no answer yet"

    def run(self) -> None:
        """Send, wait, send again; ends when told to close and nothing is left."""
        while not self.sender.stop.is_set():
            self._wake.clear()
            is_closing = self._is_closing
            try:
                self.sender.send()
            except Stopped:
                return
            except Timeout:
                self.last_problem = "another process is sending this run"
            except Exception as error:
                self._report_failure(error)
            else:
                self._report_success()
                if is_closing:
                    return
            self._wake.wait(self._pause_seconds())

    def _pause_seconds(self) -> float:
        if not self._failures:
            return IDLE_SECONDS
        if self._is_closing:
            return CLOSING_RETRY_SECONDS
        return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10))

    def _report_failure(self, error: Exception) -> None:
        self._failures += 1
        self.last_problem = failure_reason(error)
        if self._failures == 1:
            logger.warning(
                "MLflow at %s does not take the results now (%s); they are kept in %s and sent "
                "when it does",
                redact(self.sender.uri),
                self.last_problem,
                self.sender.files.run_dir,
            )

    def _report_success(self) -> None:
        if self._failures:
            logger.warning("MLflow at %s takes the results again", redact(self.sender.uri))
        self._failures = 0

    def finish(self, timeout_seconds: float) -> bool:
        """Send the rest, for at most this long; whether everything was sent."""
        self._is_closing = True
        self._wake.set()
        self.join(timeout_seconds)
        # The thread may still hang in a request; as a daemon it does not keep the process.
        self.sender.stop.set()
        self._wake.set()
        return self.sender.remaining() == (0, 0)
