"""Run several contestants in turn, each time in a fresh process, and report medians and ratios.

A benchmark script measures one contestant when called with `--only NAME` and prints one JSON
object as its last line; `compare` calls it so, round after round, so that a machine whose speed
drifts slows all contestants alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def compare(
    script: str,
    names: Sequence[str],
    arguments: Sequence[str],
    *,
    runs: int,
    timeout_seconds: float,
    interpreters: Mapping[str, Path | None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Measure every contestant `runs` times, in turn.

    `interpreters` are of contestants that need an environment of their own.

    Returns:
        For each name, the JSON objects its runs printed.

    Raises:
        SystemExit: A run failed; its error output is shown.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(runs):
        for name in names:
            interpreter = (interpreters or {}).get(name) or sys.executable
            command = [str(interpreter), script, "--only", name, *arguments]
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found = json.loads(done.stdout.strip().splitlines()[-1])
            results[name].append(found)
            print(f"run {number + 1}/{runs}  {name}: {_short(found)}", file=sys.stderr, flush=True)
    return results


def attempt(
    script: str, name: str, arguments: Sequence[str], *, timeout_seconds: float
) -> dict[str, Any]:
    """Measure one contestant once; of one that fails, `{"failed": why}`, and the others go on.

    For what a machine may lack, such as a kernel or memory.
    """
    try:
        return compare(script, [name], arguments, runs=1, timeout_seconds=timeout_seconds)[name][0]
    except subprocess.TimeoutExpired:
        why = f"took longer than {timeout_seconds:.0f} s"
    except SystemExit as failure:
        lines = [line for line in str(failure).splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if "Error" in line), lines[-1])[:500]
    print(f"{name} failed: {why}", file=sys.stderr, flush=True)
    return {"failed": why}


def medians(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Median of every number over a contestant's runs, with the lowest and highest."""
    summary: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        summary[name] = {}
        for key, value in runs[0].items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values = [run[key] for run in runs]
                summary[name][key] = statistics.median(values)
                summary[name][f"{key}_range"] = [min(values), max(values)]
            else:
                summary[name][key] = value
    return summary


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """Where and when: processor, cores, GPU, versions, command, date."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if "model name" in x), model)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Keep the whole report, if a file was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


def _short(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, int | float)
    )
