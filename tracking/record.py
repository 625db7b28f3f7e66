"""The files by which tracking remembers a run: which MLflow run it is, and how much was sent."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tracking.journal import read_json, write_json


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
