"""`python -m launch.status [RUN ...]`: how runs are doing, from the files in their folders.

Reads status.json (replaced in one step) and metrics.jsonl (whole lines only), so it is safe while
a run writes, and needs neither torch nor the run's machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from configs.command_line import EXIT_FINISHED, run_command
from configs.errors import RefusedInput
from launch.submission.folder import FOLDER, RECORD_FILE, read_record
from tracking.journal import read_rows
from tracking.metric_names import TRAIN_LOSS
from training.run_folder import RunFolder

RUNS = Path("runs")
RECORD = f"{FOLDER}/{RECORD_FILE}"
# Rows of the journal that the remaining time is judged by: a few logging intervals.
_RECENT_ROWS = 10


def describe(folder: Path, now: datetime) -> dict[str, Any]:
    """One run: state, step, time left, last loss, last error, restarts.

    Args:
        folder: Of the run.
        now: With its time zone; the age of the status counts from here.

    Returns:
        "run", "state", "step", "total_steps", "seconds_left" (None unless running, or unknown),
        "loss" (None before the first log line), "error" (None unless failed), "restarts",
        "seconds_since_update".
    """
    status = RunFolder(folder).status() or _submitted(folder)
    total, step = status.get("total_steps"), int(status.get("step", 0))
    resumed = status.get("resumed_from_steps", [])
    # Time that passed between two processes is none of the pace.
    times, loss = _journal(folder, since=resumed[-1] if resumed else 0)
    pace = _seconds_per_step(times)
    left = None
    if status.get("state") == "running" and total is not None and pace is not None:
        left = (total - step) * pace
    return {
        "run": str(folder),
        "state": status.get("state", "unknown"),
        "step": step,
        "total_steps": total,
        "seconds_left": left,
        "loss": loss,
        "error": status.get("reason", status.get("error"))
        if status.get("state") == "failed"
        else None,
        "restarts": len(resumed),
        "seconds_since_update": _age(status.get("time"), now),
    }


def _submitted(folder: Path) -> dict[str, Any]:
    """What stands for the status of a run that waits in Slurm's queue for its first start."""
    record = read_record(folder)
    return {"state": "submitted", "time": record.get("time")} if record else {}


def _journal(folder: Path, since: int) -> tuple[list[tuple[int, int]], float | str | None]:
    """(milliseconds, step) of the newest training rows after a step, and the last loss of all."""
    rows = [
        row for row, _ in read_rows(folder / "metrics.jsonl") if TRAIN_LOSS in row.get("values", {})
    ]
    times = [(int(row["time"]), int(row["step"])) for row in rows[-_RECENT_ROWS:]]
    times = [(time, step) for time, step in times if step > since]
    return times, rows[-1]["values"][TRAIN_LOSS] if rows else None


def _seconds_per_step(times: Sequence[tuple[int, int]]) -> float | None:
    if len(times) < 2 or times[-1][1] <= times[0][1]:
        return None
    return (times[-1][0] - times[0][0]) / 1000 / (times[-1][1] - times[0][1])


def _age(written: Any, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(str(written))).total_seconds()
    except (TypeError, ValueError):
        return None


def find_runs(given: Sequence[Path]) -> list[Path]:
    """The folders given, or all under runs/ that hold a run.

    Raises:
        RefusedInput: One holds no run, or there are none.
    """
    for folder in given:
        if not (folder / "status.json").is_file() and not read_record(folder):
            raise RefusedInput(f"{folder}: holds no status.json; give the folder of a run")
    # A sweep keeps its runs in a folder of their own.
    levels = ("*/", "*/*/")
    started = {path.parent for at in levels for path in RUNS.glob(f"{at}status.json")}
    waiting = {path.parents[1] for at in levels for path in RUNS.glob(f"{at}{RECORD}")}
    found = list(given) or sorted(started | waiting)
    if not found:
        raise RefusedInput(f"{RUNS}/ holds no run; give the folder of one")
    return found


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A line for each run, and below it the error of one that failed."""
    lines = [
        "run                            state     step               left      loss      restarts"
        "  updated"
    ]
    for run in runs:
        total = run["total_steps"]
        step = f"{run['step']}/{total}" if total is not None else str(run["step"])
        loss = run["loss"]
        shown = f"{loss:.4g}" if isinstance(loss, float | int) else str(loss or "-")
        lines.append(
            f"{run['run']:<30} {run['state']:<9} {step:<18} {_span(run['seconds_left']):<9} "
            f"{shown:<9} {run['restarts']:<8}  {_span(run['seconds_since_update'])} ago"
        )
        if run["error"]:
            lines.append(f"  {run['error']}")
    return "\n".join(lines) + "\n"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def main(argv: Sequence[str]) -> int:
    """Print the table, or with --json a list of objects."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.status",
        description="How runs are doing: step, time left, last loss, last error, restarts.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, nargs="*", help="run folders (default: all under runs/)")
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects")
    options = parser.parse_args(argv)
    now = datetime.now().astimezone()
    runs = [describe(folder, now) for folder in find_runs(options.run)]
    sys.stdout.write(json.dumps(runs, indent=2) + "\n" if options.json else table(runs))
    return EXIT_FINISHED


if __name__ == "__main__":
    run_command(main)
