"""What is submitted: jobs and the runs they hold, with every option settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import FinetuneConfig, PretrainConfig
from finetune.options import task_config_file
from finetune.tasks import TASKS
from launch.submission.folder import CONFIG_FILE, FOLDER
from launch.submission.options import SubmitOptions
from launch.submission.site import SiteConfig
from launch.submission.sweep import members

AnyConfig = TypeVar("AnyConfig", PretrainConfig, FinetuneConfig, covariant=True)


@dataclass(frozen=True)
class Run(Generic[AnyConfig]):
    """One run: its folder, and its config with that folder in it."""

    folder: Path
    config: AnyConfig

    @property
    def config_file(self) -> Path:
        """Its options, as they were when it was submitted."""
        return self.folder / FOLDER / CONFIG_FILE


@dataclass(frozen=True)
class Job(Generic[AnyConfig]):
    """What one sbatch submits.

    Attributes:
        kind: Of its runs.
        name: In the queue.
        runs: One, or the tasks of a job array in their order.
        is_array: Whether it is a job array, be it of one task.
        array_limit: Tasks at a time; None for all.
        folder: Where script and logs go: that of the run, of all pretraining runs of a sweep, or of
            the run whose weights are finetuned.
        nodes: Machines of each run.
        gpus_per_node: GPUs of each machine.
        ranks_per_node: Processes of each machine.
        time: Limit of one start, as Slurm writes it.
    """

    kind: Literal["pretrain", "finetune"]
    name: str
    runs: tuple[Run[AnyConfig], ...]
    is_array: bool
    array_limit: int | None
    folder: Path
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    time: str

    @property
    def world_size(self) -> int:
        """Ranks of each run."""
        return self.nodes * self.ranks_per_node

    @property
    def script(self) -> Path:
        """Where the batch script is kept."""
        return self.folder / f"{self.kind}.sbatch"

    def log(self, job_id: str) -> Path:
        """Where Slurm writes; for `%`-less ids the file of that job or of that task of it."""
        return self.folder / f"{self.kind}-{job_id}.log"


@dataclass(frozen=True)
class Submission:
    """Everything one command submits.

    Attributes:
        options: The command line.
        site: The site file, with what the command line says otherwise.
        pretraining: One job.
        finetuning: A job for each run of it, or none.
    """

    options: SubmitOptions
    site: SiteConfig
    pretraining: Job[PretrainConfig]
    finetuning: tuple[Job[FinetuneConfig], ...]

    @property
    def jobs(self) -> tuple[Job[PretrainConfig] | Job[FinetuneConfig], ...]:
        """All, in the order of submission."""
        return (self.pretraining, *self.finetuning)


def prepare(options: SubmitOptions, site: SiteConfig) -> Submission:
    """Settle every option of every run.

    Raises:
        RefusedInput: Something in a config or on the command line cannot be.
    """
    from tracking.run import check_settings

    pretraining = _pretraining(options)
    finetuning = tuple(_finetuning(run, options) for run in pretraining.runs if options.tasks)
    settings = [run.config.tracking for run in pretraining.runs]
    settings += [run.config.tracking for job in finetuning for run in job.runs]
    for tracking in settings:
        # Not among the checks that can be left out: a password would be written to a file.
        check_settings(tracking)
    return Submission(options, site, pretraining, finetuning)


def _pretraining(options: SubmitOptions) -> Job[PretrainConfig]:
    sweep = members(options.array)
    loaded = [
        load_config(
            PretrainConfig,
            ["--config", str(options.config), *options.config_options, *member.words],
            "python -m launch.submit",
        ).config
        for member in sweep
    ]
    # All runs of a sweep lie in one folder, under names that tell them apart in MLflow, too.
    whole = loaded[0].run_dir or Path("runs") / options.config.stem
    folders = [
        whole / f"{whole.name}-{member.label}" if member.label else whole for member in sweep
    ]
    runs = tuple(
        Run(folder, config.model_copy(update={"run_dir": folder}))
        for folder, config in zip(folders, loaded, strict=True)
    )
    return Job(
        kind="pretrain",
        name=whole.name,
        runs=runs,
        is_array=bool(options.array),
        array_limit=options.array_limit,
        folder=whole / FOLDER,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        ranks_per_node=options.ranks_per_node,
        time=options.time,
    )


def _finetuning(pretraining: Run[PretrainConfig], options: SubmitOptions) -> Job[FinetuneConfig]:
    """The array of one pretraining run's tasks; their folders stand beside its own."""
    folder = pretraining.folder
    runs = tuple(
        Run(
            folder.with_name(f"finetune-{task}-{folder.name}"),
            _finetune_config(task, pretraining, options.finetune_options),
        )
        for task in options.tasks
    )
    return Job(
        kind="finetune",
        name=f"{folder.name}-finetune",
        runs=tuple(
            Run(run.folder, run.config.model_copy(update={"run_dir": run.folder})) for run in runs
        ),
        is_array=True,
        array_limit=None,
        folder=folder / FOLDER,
        nodes=1,
        gpus_per_node=options.finetune_gpus if options.gpus_per_node else 0,
        ranks_per_node=options.finetune_gpus,
        time=options.finetune_time,
    )


def _finetune_config(
    task: str, pretraining: Run[PretrainConfig], words: Sequence[str]
) -> FinetuneConfig:
    if task not in TASKS:
        raise RefusedInput(f"--tasks {task}: there is no such task; known: {', '.join(TASKS)}")
    argv = ["--task", task, "--pretrained", str(pretraining.folder)]
    # Both stages are compared in one place, so they report to the same, unless told otherwise.
    tracking = pretraining.config.tracking
    argv += [] if tracking.enabled else ["--tracking.no-enabled"]
    argv += [] if tracking.uri is None else ["--tracking.uri", tracking.uri]
    argv += words
    file = task_config_file(argv)
    return load_config(FinetuneConfig, argv, "finetune/run.py", default_file=file).config
