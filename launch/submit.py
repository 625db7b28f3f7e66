"""`python -m launch.submit`: check a pretraining run, submit it to Slurm, and finetuning after it.

    python -m launch.submit --config configs/pretrain/vit_b16_in21k.yaml --nodes 4 \
        --gpus-per-node 8 --time 24:00:00 --then finetune --tasks cifar10,pets

`--dry-run` prints the scripts and what the checks find, on any machine. docs/slurm.md has the rest.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.command_line import EXIT_FINISHED, run_command
from configs.errors import RefusedInput
from launch.submission.job import Job, Submission, prepare
from launch.submission.options import parse_options
from launch.submission.preflight import preflight
from launch.submission.queue import require_slurm, submit
from launch.submission.record import write_job, write_record
from launch.submission.script import render
from launch.submission.site import read_site
from tracking.provenance import git_state


def main(argv: Sequence[str]) -> int:
    """Check, then submit; the exit code is 0, or 2 where something keeps the jobs from running.

    Raises:
        RefusedInput: Options, site file or config are wrong, a check fails, or Slurm refuses.
    """
    options = parse_options(argv)
    site = read_site(options.site).model_copy(update=options.site_overrides)
    submission = prepare(options, site)
    if options.dry_run:
        _show(submission)
        return EXIT_FINISHED
    require_slurm()
    _check(submission)
    _tell(_submit(submission))
    return EXIT_FINISHED


def _show(submission: Submission) -> None:
    """The scripts on standard output, so that they can be kept; all else on standard error."""
    commit, _ = git_state()
    for job in submission.jobs:
        sys.stdout.write(f"# {job.script}\n{render(job, submission.site, commit, Path.cwd())}\n")
    sys.stdout.flush()
    for finding in preflight(submission):
        word = "ok" if finding.passed else "would be refused"
        sys.stderr.write(f"{word}: {finding.check}: {finding.told}\n")


def _check(submission: Submission) -> None:
    failed = []
    for finding in preflight(submission):
        if finding.passed:
            sys.stdout.write(f"checked {finding.check + ':':<10}{finding.told}\n")
            sys.stdout.flush()
        else:
            failed.append(f"{finding.check}: {finding.told}")
    if failed:
        raise RefusedInput(
            "\n       ".join(
                ["nothing was submitted:", *failed, "(--skip CHECK leaves a check out)"]
            )
        )


def _submit(submission: Submission) -> list[tuple[Job[Any], str]]:
    """Submit all jobs; what was submitted before one is refused stays, and is told."""
    for job in submission.jobs:
        write_job(job, submission.site)
    pretraining = submission.pretraining
    submitted: list[tuple[Job[Any], str]] = [(pretraining, submit(pretraining.script))]
    first = submitted[0][1]
    try:
        for number, job in enumerate(submission.finetuning):
            after = f"{first}_{number}" if pretraining.is_array else first
            submitted.append((job, submit(job.script, after)))
    except RefusedInput as problem:
        raise RefusedInput(
            f"{problem}\n       Job {first} (pretraining) is submitted; "
            f"scancel {first} takes it back"
        ) from None
    finally:
        write_record(submitted)
    return submitted


def _tell(submitted: Sequence[tuple[Job[Any], str]]) -> None:
    for job, job_id in submitted:
        what = "pretraining" if job.kind == "pretrain" else "finetuning, once that has ended well"
        sys.stdout.write(f"submitted job {job_id}: {what}\n")
        for number, run in enumerate(job.runs):
            task = f"{job_id}_{number}" if job.is_array else job_id
            sys.stdout.write(f"  {run.folder}, log {job.log(task)}\n")
    first, first_id = submitted[0]
    ids = ",".join(job_id for _, job_id in submitted)
    folders = shlex.join(str(run.folder) for run in first.runs)
    log = shlex.quote(str(first.log(f"{first_id}_0" if first.is_array else first_id)))
    sys.stdout.write(
        f"follow:  squeue --jobs {ids}\n"
        f"         python -m launch.status {folders}\n"
        f"         tail -F {log}\n"
        f"end:     scancel {first_id}\n"
    )


if __name__ == "__main__":
    run_command(main)
