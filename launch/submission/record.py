"""What a submission leaves in the run folders: configs, scripts, commit, job ids."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from configs.durable_files import write_atomically
from configs.load import to_yaml
from launch.submission.folder import FOLDER, RECORD_FILE
from launch.submission.job import Job
from launch.submission.script import ROOT, render
from launch.submission.site import SiteConfig
from tracking.provenance import command_line, git_state

PATCH_FILE = "uncommitted.patch"


def write_job(job: Job[Any], site: SiteConfig) -> None:
    """Write the configs of all runs, the script, and what differs from the commit."""
    for run in job.runs:
        run.config_file.parent.mkdir(parents=True, exist_ok=True)
        # `resume` was looked at before; a job that comes back must go on.
        write_atomically(run.config_file, to_yaml(run.config.model_copy(update={"resume": "auto"})))
        (run.config_file.parent / "stalled-after").unlink(missing_ok=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    commit, is_dirty = git_state()
    write_atomically(job.script, render(job, site, commit, Path.cwd()))
    patch = job.folder / PATCH_FILE
    if is_dirty:
        write_atomically(patch, _changes())
    else:
        patch.unlink(missing_ok=True)


def write_record(jobs: list[tuple[Job[Any], str]]) -> None:
    """Note in each run's folder by which jobs it was submitted (ids are those of arrays' tasks)."""
    commit, is_dirty = git_state()
    for job, job_id in jobs:
        for number, run in enumerate(job.runs):
            task = f"{job_id}_{number}" if job.is_array else job_id
            record = {
                "time": datetime.now().astimezone().isoformat(timespec="seconds"),
                "command": command_line(),
                "commit": commit,
                "dirty": is_dirty,
                "jobs": [
                    {
                        "kind": job.kind,
                        "job_id": task,
                        "name": job.name,
                        "script": str(job.script),
                        "log": str(job.log(task)),
                    }
                ],
            }
            path = run.folder / FOLDER / RECORD_FILE
            write_atomically(path, json.dumps(record, indent=2) + "\n")


def _changes() -> str:
    """What tracked files have that the commit has not."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "diff", "HEAD"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    return done.stdout
