"""Options of `python -m launch.submit`; whatever is not one of them is an option of the config."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import RefusedInput
from launch.planner.options import count_from_one, refuse_unknown

# What is looked at before anything is submitted, in this order (`launch.submission.preflight`).
CHECKS = ("queue", "paths", "batch", "data", "shards", "disk", "memory", "finetune")
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+)(?::(?P<day_seconds>\d+))?)?"
    r"|(?:(?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(?::(?P<seconds>\d+))?)"
)
_UNITS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class SubmitOptions:
    """The command line, parsed; None means: from the site file or its default.

    Attributes:
        config: Of the pretraining.
        nodes: Machines.
        gpus_per_node: Of each; 0 computes on CPUs.
        ranks_per_node: Processes of each machine; one for each GPU.
        time: Limit of one start, as Slurm writes it.
        site: Site file.
        site_overrides: Keys of the site file that the command line sets.
        array: Sets of options, as given.
        array_limit: Runs of the array at a time.
        tasks: Finetuned when pretraining has ended well; empty for none.
        finetune_time: Limit of one start of a task.
        finetune_gpus: GPUs (without: processes) of each task.
        finetune_options: For `finetune/run.py`.
        skip: Checks that are left out.
        dry_run: Show, submit nothing, write nothing.
        config_options: For the config.
    """

    config: Path
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    time: str
    site: Path | None
    site_overrides: dict[str, str | int]
    array: tuple[str, ...]
    array_limit: int | None
    tasks: tuple[str, ...]
    finetune_time: str
    finetune_gpus: int
    finetune_options: tuple[str, ...]
    skip: tuple[str, ...]
    dry_run: bool
    config_options: tuple[str, ...]


def parse_options(argv: Sequence[str]) -> SubmitOptions:
    """Read the command line; a wrong value ends the process with exit code 2 and a sentence.

    Raises:
        RefusedInput: Options that do not go together.
    """
    parser = _parser()
    found, rest = parser.parse_known_args(list(argv))
    refuse_unknown(parser, rest)
    gpus = found.gpus_per_node
    if gpus and found.ranks_per_node not in (None, gpus):
        raise RefusedInput(
            f"--ranks-per-node {found.ranks_per_node}: with --gpus-per-node {gpus} there is one "
            "rank for each GPU; leave it out, or give --gpus-per-node 0"
        )
    site_keys = "partition account qos mem cpus_per_rank gpu signal_seconds max_restarts".split()
    return SubmitOptions(
        config=found.config,
        nodes=found.nodes,
        gpus_per_node=gpus,
        ranks_per_node=gpus or found.ranks_per_node or 1,
        time=found.time,
        site=found.site,
        site_overrides={
            name: value for name in site_keys if (value := getattr(found, name)) is not None
        },
        array=tuple(found.array or ()),
        array_limit=found.array_limit,
        tasks=_tasks(found),
        finetune_time=found.finetune_time or found.time,
        finetune_gpus=found.finetune_gpus,
        finetune_options=_words(found.finetune_options),
        skip=_skipped(found.skip),
        dry_run=found.dry_run,
        config_options=tuple(rest),
    )


def time_seconds(text: str) -> int:
    """Seconds of a time limit: minutes, [hours:]minutes:seconds, or days-hours[:minutes[:seconds]].

    Raises:
        argparse.ArgumentTypeError: It is none of these, or zero.
    """
    found = _TIME.fullmatch(text)
    parts = {} if found is None else found.groupdict()
    seconds = sum(
        int(value) * _UNITS[name.removeprefix("day_")] for name, value in parts.items() if value
    )
    if seconds == 0:
        raise argparse.ArgumentTypeError(
            f"{text}: give minutes, hours:minutes:seconds or days-hours:minutes:seconds"
        )
    return seconds


def _tasks(found: argparse.Namespace) -> tuple[str, ...]:
    if (found.then is None) != (found.tasks is None):
        raise RefusedInput(
            "--then finetune and --tasks go together: --then finetune --tasks cifar10,pets"
        )
    if found.tasks is None:
        return ()
    tasks = tuple(task for task in found.tasks.split(",") if task)
    if not tasks or len(set(tasks)) < len(tasks):
        raise RefusedInput(f"--tasks {found.tasks}: give each task once, as in cifar10,pets")
    return tasks


def _words(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as problem:
        raise RefusedInput(f"--finetune-options {text!r}: {problem}".lower()) from None
    for word in words:
        if word.partition("=")[0] in ("--task", "--run-dir", "--config"):
            raise RefusedInput(
                f"--finetune-options: {word} differs between the tasks and is set by --tasks"
            )
    return words


def _skipped(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in CHECKS:
            raise RefusedInput(f"--skip {name}: the checks are {', '.join(CHECKS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.submit",
        description="Check a pretraining run, submit it to Slurm, and finetuning after it.",
        epilog="Every option of launch/pretrain.py is taken too, as in --run-dir runs/b16 "
        "--data.train /shards/in21k. docs/slurm.md explains the rest.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="pretraining config (YAML)")
    add("--nodes", type=count_from_one, required=True, metavar="N", help="machines")
    add("--gpus-per-node", type=_count, required=True, metavar="G", help="0 computes on CPUs")
    add("--ranks-per-node", type=count_from_one, metavar="R", help="without GPUs (default 1)")
    add("--time", type=_time, required=True, metavar="T", help="limit of one start: 24:00:00, 2-00")
    add("--dry-run", action="store_true", help="print scripts and checks; write, submit nothing")
    add("--skip", default="", metavar="CHECKS", help=f"leave out some of {','.join(CHECKS)}")
    _add_site(parser.add_argument_group("site, in front of the site file's keys"))
    _add_array(parser.add_argument_group("several runs"))
    _add_finetuning(parser.add_argument_group("finetuning afterwards"))
    return parser


def _add_site(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--site", type=Path, metavar="FILE", help="site file (default: what VITRAIN_SITE names)")
    add("--partition", metavar="P", help="partition")
    add("--account", metavar="A", help="account that is charged")
    add("--qos", metavar="Q", help="quality of service")
    add("--mem", metavar="M", help="memory of a node, such as 200G; 0 is all")
    add(
        "--cpus-per-rank",
        type=count_from_one,
        metavar="C",
        help="cores (default 8; without GPUs 1)",
    )
    add("--gpu", metavar="KIND", help="such as h100-80gb: checks that the run fits its memory")
    add(
        "--signal-seconds",
        type=count_from_one,
        metavar="S",
        help="save so long before the time limit",
    )
    add("--max-restarts", type=_count, metavar="N", help="times a job may come back (default 100)")


def _add_array(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--array",
        nargs="+",
        metavar="SET",
        help="OPTION=V1,V2 ... makes a run of each combination (seed=0-4 is a range); a file makes "
        "one of each line of options",
    )
    add("--array-limit", type=count_from_one, metavar="N", help="so many of them at a time")


def _add_finetuning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--then", choices=["finetune"], help="what follows when pretraining has ended well")
    add("--tasks", metavar="T1,T2", help="its tasks, each a task of a job array: cifar10,pets")
    add("--finetune-time", type=_time, metavar="T", help="limit of each (default: --time)")
    add(
        "--finetune-gpus",
        type=count_from_one,
        default=1,
        metavar="N",
        help="GPUs, or without GPUs processes, of each task (default 1)",
    )
    add(
        "--finetune-options",
        default="",
        metavar="'--OPTION X'",
        help="for finetune/run.py, in quotes",
    )


def _time(text: str) -> str:
    time_seconds(text)
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: give a whole number")
    return int(text)
