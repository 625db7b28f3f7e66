"""A pretraining job of two nodes with a rank each, and what tests do to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.integration.pretrain_processes import read_json
from tests.slurm.cluster import SlurmCluster, wait_until

START_SECONDS = 240  # imports of two ranks on a busy machine; twenty on a quiet one
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@dataclass(frozen=True)
class PretrainingJob:
    """A job that was submitted, its id, its run folder, and the array of finetuning after it."""

    cluster: SlurmCluster
    id: str
    run: Path
    finetuning: str | None = None

    def facts(self) -> dict[str, str]:
        return self.cluster.jobs(self.id)[0]

    def log(self) -> str:
        """What all starts of the job have said."""
        path = self.run / "slurm" / f"pretrain-{self.id}.log"
        return path.read_text() if path.exists() else ""

    def finetuning_states(self) -> list[str]:
        assert self.finetuning is not None
        return [task["JobState"] for task in self.cluster.jobs(self.finetuning)]

    def status(self) -> dict[str, Any]:
        path = self.run / "status.json"
        return read_json(path) if path.exists() else {}

    def result(self) -> dict[str, Any]:
        return read_json(self.run / "result.json")

    def told(self) -> str:
        """All that is known, for the message of a test that failed."""
        logs = [path for path in self.run.parent.rglob("*.log") if path.stat().st_size < 1e6]
        texts = [f"{path}:\n{path.read_text()[-4000:]}" for path in logs]
        return "\n".join([str(self.facts()), str(self.status()), *texts, self.cluster.logs()])

    def wait_for_step(self, step: int) -> None:
        def has_reached() -> bool:
            status = self.status()
            if status.get("state") == "running" and status["step"] >= step:
                return True
            assert self.facts()["JobState"] not in _ENDED, self.told()
            return False

        wait_until(has_reached, START_SECONDS, self.told)

    def wait_for(self, state: str, seconds: float = START_SECONDS) -> None:
        """Until the job is in a state of Slurm's; another final state fails at once."""

        def is_there() -> bool:
            found = self.facts()["JobState"]
            assert found == state or found not in _ENDED, self.told()
            return found == state

        wait_until(is_there, seconds, self.told)

    def start_now(self, *changes: str) -> None:
        """Spare a requeued job the two minutes that Slurm lets it wait for its own processes' end.

        Started sooner, the end of the first start's script would be taken for the second's; and in
        the second in which they ended the first, nodes take nothing of the job.
        """
        self.wait_for("PENDING")
        self.cluster.wait_idle()
        self.cluster.command("scontrol", "update", f"JobId={self.id}", "StartTime=now+3", *changes)

    def end(self) -> None:
        """Cancel what is left of it, and wait until its nodes are free."""
        self.cluster.command("scancel", self.id, *([self.finetuning] if self.finetuning else []))
        self.cluster.wait_idle()

    def minutes_since_start(self) -> int:
        """Whole minutes, rounded down."""
        hours, minutes, _ = self.facts()["RunTime"].split(":")
        return int(hours) * 60 + int(minutes)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The ranks stand still, so that a short run cannot end before something happens to it.

        Slurm lets stopped processes go on when it signals them.
        """
        ranks = self.ranks()
        assert len(ranks) == 2, self.told()
        for rank in ranks:
            rank.suspend()
        try:
            yield
        finally:
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.resume()

    @contextmanager
    def held_after_a_checkpoint(self) -> Iterator[None]:
        self.wait_for_step(1)
        wait_until((self.run / "checkpoints" / "latest").exists, START_SECONDS, self.told)
        with self.held():
            yield

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if _trains(process.info["cmdline"] or [], self.run)
        ]


def _trains(words: Sequence[str], run: Path) -> bool:
    is_python = bool(words) and Path(words[0]).name.startswith("python")
    return is_python and str(run / "slurm" / "config.yaml") in words
