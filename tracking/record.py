"""The files by which tracking remembers a run: which MLflow run it is, and how much was sent."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from configs.groups import TrackingConfig
from tracking.journal import read_json, write_json
from tracking.provenance import redact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingFiles:
    """Paths of everything tracking keeps in a run folder."""

    run_dir: Path

    @property
    def metrics(self) -> Path:
        """Journal of metric rows: {"time": ms, "step": int, "values": {name: number}}."""
        return self.run_dir / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Journal of everything else: {"kind": ..., "id": hex, "time": ms, ...}."""
        return self.run_dir / "tracking" / "events.jsonl"

    @property
    def sent(self) -> Path:
        """How many bytes of each journal MLflow has."""
        return self.run_dir / "tracking" / "sent.json"

    @property
    def lock(self) -> Path:
        """Held by whoever is sending."""
        return self.run_dir / "tracking" / "lock"

    @property
    def record(self) -> Path:
        """Which MLflow run this is."""
        return self.run_dir / "tracking.json"


@dataclass
class RunRecord:
    """`tracking.json`: the MLflow run that belongs to a run folder. Holds no credentials."""

    stage: str = ""
    uri: str = ""
    experiment: str = ""
    run_name: str = ""
    run_id: str | None = None
    experiment_id: str | None = None
    model_id: str | None = None

    @classmethod
    def load(cls, path: Path) -> "RunRecord":
        """The record in a file; an empty one if there is none."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in read_json(path).items() if key in known})

    def save(self, path: Path) -> None:
        """Replace the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(self))


@dataclass
class Sent:
    """`sent.json`: byte offsets up to which the journals have been sent."""

    metrics: int = 0
    events: int = 0

    @classmethod
    def load(cls, path: Path) -> "Sent":
        """The offsets in a file; zeros if there is none."""
        content = read_json(path)
        return cls(int(content.get("metrics", 0)), int(content.get("events", 0)))

    def save(self, path: Path) -> None:
        """Replace the file."""
        write_json(path, dataclasses.asdict(self))


def open_record(
    files: TrackingFiles, settings: TrackingConfig, stage: str, uri: str | None
) -> RunRecord:
    """The run folder's record, made or brought up to date; offsets are reset for another store."""
    record = RunRecord.load(files.record)
    is_new = not record.stage
    record.stage = stage
    if is_new:
        record.experiment = settings.experiment or f"vitrain-{stage}"
        record.run_name = settings.run_name or files.run_dir.name
    if uri is not None and record.uri != redact(uri):
        if record.uri and record.run_id:
            logger.warning("tracking moves from %s to %s", record.uri, redact(uri))
        record.uri = redact(uri)
    record.save(files.record)
    if is_new:
        files.sent.parent.mkdir(parents=True, exist_ok=True)
        Sent().save(files.sent)
    return record


def forget_lost_rows(files: TrackingFiles) -> None:
    """Send all anew if a power cut took sent rows: the offsets would skip what follows."""
    sent = Sent.load(files.sent)
    if sent.metrics > files.metrics.stat().st_size or sent.events > files.events.stat().st_size:
        Sent().save(files.sent)
