"""Slurm's own commands: whether they are there, what is in the queue, submitting."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from configs.errors import RefusedInput
from launch.submission.folder import read_record

_PATIENCE_SECONDS = 120


def require_slurm() -> None:
    """Refuse a machine without Slurm.

    Raises:
        RefusedInput: There is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise RefusedInput(
            "this machine has no sbatch, so nothing can be submitted from it: log in to the "
            "cluster, or see the scripts with --dry-run (docs/hostfile.md: without Slurm)"
        )


def submit(script: Path, after: str | None = None) -> str:
    """Hand a script to sbatch; gives the job's id.

    Args:
        script: The batch script.
        after: Id of a job that has to end well first. If it does not, this one is cancelled.

    Raises:
        RefusedInput: Slurm does not take it; the message has its reason.
    """
    command = ["sbatch", "--parsable"]
    if after is not None:
        # Without the second, a job whose condition can never hold stays in the queue for ever.
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    done = _run([*command, str(script)])
    if done.returncode:
        told = done.stderr.strip() or f"exit code {done.returncode}"
        raise RefusedInput(f"sbatch does not take {script}: {told}")
    # With several clusters it says "id;cluster"; notices of the site may stand above.
    job_id = done.stdout.strip().rpartition("\n")[2].partition(";")[0]
    if not job_id.isdigit():
        raise RefusedInput(
            f"sbatch took {script} but gave no job id (it said {done.stdout!r}); squeue shows it"
        )
    return job_id


def refuse_queued(folder: Path) -> None:
    """Refuse a run folder whose last submission is still in the queue.

    Raises:
        RefusedInput: With the job's id and state.
    """
    for job in read_record(folder).get("jobs", []):
        state = _state(str(job["job_id"]), str(job["name"]))
        if state is not None:
            raise RefusedInput(
                f"{folder} was submitted as job {job['job_id']}, which is {state}; wait for it, or "
                f"take it back with scancel {job['job_id']}"
            )


def _state(job_id: str, name: str) -> str | None:
    """A job's state in the queue; None if it is not there, or the number is another job's now."""
    if shutil.which("squeue") is None:
        return None
    done = _run(["squeue", "--noheader", "--jobs", job_id, "--format", "%T %j"])
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        state, _, found = line.strip().partition(" ")
        if found == name:
            return state.lower()
    return None


def _environment() -> dict[str, str]:
    """This process's, without what a job around it (salloc, say) set and the new one would get."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in kept}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, env=_environment()
        )
    except subprocess.TimeoutExpired:
        raise RefusedInput(
            f"{command[0]} has not answered for {_PATIENCE_SECONDS} s; is the controller down?"
        ) from None
