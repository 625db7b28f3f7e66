"""The batch script of a job: `launch/job.sbatch` with the job's values in it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import RefusedInput
from launch.submission.job import Job
from launch.submission.site import SiteConfig

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "launch" / "job.sbatch"
_PROGRAMS = {"pretrain": ROOT / "launch" / "pretrain.py", "finetune": ROOT / "finetune" / "run.py"}
# What sbatch takes as it stands; everything else goes between double quotes.
_PLAIN = re.compile(r"[\w@%+=:,./-]+")
_CPUS_BESIDE_A_GPU = 8


def render(job: Job[Any], site: SiteConfig, commit: str, work_dir: Path) -> str:
    """The script that sbatch gets.

    Args:
        job: What it runs.
        site: What the cluster wants.
        commit: Of the checkout, now.
        work_dir: Folder that relative paths of the run start from.

    Raises:
        RefusedInput: A path or name that Slurm could not take.
    """
    values = {
        "directives": "\n".join(_directives(job, site, work_dir)),
        "runs": " ".join(shlex.quote(str(run.folder)) for run in job.runs),
        "checkout": shlex.quote(str(ROOT)),
        "commit": shlex.quote(commit),
        "max_restarts": str(site.max_restarts),
        "site": _site_block(site),
        "command": shlex.join([*site.srun, *site.container, *_command(job, site)]),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    head, _, body = text.partition("\n# Template")
    text = (
        head + "\n# Written by `python -m launch.submit`; docs/slurm.md" + body[body.index("\n") :]
    )
    return re.sub(r"@@(\w+)@@", lambda found: values[found[1]], text)


def python_of(site: SiteConfig) -> str:
    """The interpreter that runs the job's program."""
    return site.python or ("python" if site.in_container else sys.executable)


def _command(job: Job[Any], site: SiteConfig) -> list[str]:
    program = [str(_PROGRAMS[job.kind])]
    if job.kind == "finetune" and job.world_size > 1:
        # Pretraining reads its rank from Slurm itself; finetuning expects what torchrun sets.
        program.insert(0, str(ROOT / "launch" / "under_srun.py"))
    return [python_of(site), "-u", *program]


def _directives(job: Job[Any], site: SiteConfig, work_dir: Path) -> Iterator[str]:
    tasks = f"0-{len(job.runs) - 1}" + (f"%{job.array_limit}" if job.array_limit else "")
    # A percent sign in the name of a folder must not become one of Slurm's patterns.
    log = job.log("@").with_name(f"{job.kind}-{'%A_%a' if job.is_array else '%j'}.log")
    output = str(work_dir / log.parent).replace("%", "%%") + f"/{log.name}"
    yield from _options(
        {
            "job-name": job.name,
            "nodes": job.nodes,
            "ntasks-per-node": job.ranks_per_node,
            "cpus-per-task": site.cpus_per_rank or (_CPUS_BESIDE_A_GPU if job.gpus_per_node else 1),
            "mem": site.mem,
            "time": job.time,
            "partition": site.partition,
            "account": site.account,
            "qos": site.qos,
            "array": tasks if job.is_array else None,
            "chdir": work_dir,
            "output": output,
            "open-mode": "append",
            # Without "B:" it goes to every rank.
            "signal": f"USR1@{site.signal_seconds}",
        }
    )
    yield "#SBATCH --requeue"
    if job.gpus_per_node:
        yield f"#SBATCH {site.gpu_request.format(gpus=job.gpus_per_node)}"
    for option in site.sbatch:
        yield f"#SBATCH {option}"


def _options(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value is not None:
            yield f"#SBATCH --{name}={_quoted(name, str(value))}"


def _quoted(name: str, value: str) -> str:
    """A value as sbatch reads it: it knows double quotes, and the backslash everywhere."""
    if _PLAIN.fullmatch(value):
        return value
    if "\n" in value:
        raise RefusedInput(f"{name} = {value!r}: a line break cannot be told to Slurm; rename it")
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _site_lines(site: SiteConfig) -> Iterator[str]:
    for name, value in site.environment.items():
        yield f"export {name}={shlex.quote(str(value))}"
    yield from site.setup


def _site_block(site: SiteConfig) -> str:
    lines = list(_site_lines(site))
    return "\n".join(["# From the site file.", *lines, ""]) if lines else ""
