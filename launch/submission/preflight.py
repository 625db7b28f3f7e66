"""What is looked at before anything is submitted: a job that waits for days must not be refused.

Every check says what it found, or refuses with a sentence; all are made, so that everything wrong
is told at once. What the run itself would refuse is asked of the run's own code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.batch_split import split_batch
from configs.errors import RefusedInput
from configs.schema import FinetuneConfig, PretrainConfig
from finetune.options import check_resolution
from launch.shard_samples import read_some
from launch.submission.capacity import check_disk, check_memory
from launch.submission.job import Run, Submission
from launch.submission.options import CHECKS, time_seconds
from launch.submission.queue import refuse_queued
from launch.submission.script import python_of
from pretrain.plan import Plan, Ranks, make_plan
from pretrain.resume import check_start
from training.run_folder import RunFolder

# Images of containers that are files end so; anything else is a name in some registry.
_IMAGE_FILES = (".sif", ".sqsh", ".img")


@dataclass(frozen=True)
class Finding:
    """What a check came to: whether it passed, and a sentence."""

    check: str
    passed: bool
    told: str


def preflight(submission: Submission) -> Iterator[Finding]:
    """Make all checks that were not skipped, and say of each what it found."""
    checks = _Checks(submission)
    refused: set[str] = set()
    for name in CHECKS:
        check: Callable[[], str | None] = getattr(checks, name)
        if name in submission.options.skip:
            continue
        try:
            told = check()
        except RefusedInput as problem:
            # What keeps several checks from looking is told once.
            if str(problem) not in refused:
                yield Finding(name, False, str(problem))
            refused.add(str(problem))
        else:
            if told:
                yield Finding(name, True, told)


class _Checks:
    """A method for each name in `CHECKS`; what several need is worked out once."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._job = submission.pretraining
        self._plans: dict[Path, Plan] = {}

    def queue(self) -> None:
        for job in self._submission.jobs:
            for run in job.runs:
                refuse_queued(run.folder)

    def paths(self) -> str:
        site = self._submission.site
        for job in self._submission.jobs:
            limit, lead = time_seconds(job.time), site.signal_seconds
            if limit <= lead:
                raise RefusedInput(
                    f"--time {job.time} ({limit} s) ends before the signal to save, which comes "
                    f"{lead} s ahead; give more time, or a lower --signal-seconds"
                )
            for run in job.runs:
                _check_writable(run.folder)
        python = python_of(site)
        if not site.in_container and shutil.which(python) is None:
            raise RefusedInput(
                f"python = {python} is no program on this machine; correct it in the site file"
            )
        for word in site.container:
            if word.endswith(_IMAGE_FILES) and not Path(word).is_file():
                raise RefusedInput(
                    f"container: there is no file {word}; build it (docs/offline.md)"
                )
        return f"{python}, logs in {self._job.folder}"

    def batch(self) -> str:
        for run in self._job.runs:
            micro, steps = split_batch(run.config.batch, self._job.world_size)
        ranks = self._job.world_size
        return f"{run.config.batch.global_images} images = {ranks} ranks x {steps} x {micro}"

    def data(self) -> str:
        for run in self._job.runs:
            plan = self._plan(run)
            _check_folder(run, plan, bool(self._submission.finetuning))
        return (
            f"{plan.train.num_images:,} images in {plan.train.num_shards} shards, "
            f"{plan.num_classes:,} classes; {plan.total_steps:,} steps"
        )

    def shards(self) -> str:
        datasets = {
            dataset.place: dataset
            for plan in map(self._plan, self._job.runs)
            for dataset in (plan.train, plan.validation)
            if dataset is not None
        }
        number = sum(read_some(dataset) for dataset in datasets.values())
        return f"an image of each of {number} shards could be read"

    def disk(self) -> str:
        return check_disk(self._job, self._classes)

    def memory(self) -> str | None:
        return check_memory(self._submission)

    def finetune(self) -> str | None:
        from finetune.task_data import needs_download

        fetched = []
        for pretraining, job in zip(self._job.runs, self._submission.finetuning, strict=False):
            for run in job.runs:
                _check_task(run.config, pretraining.config, job.world_size)
                if needs_download(run.config.task, run.config.data_dir):
                    fetched.append(run.config.task)
        if not self._submission.finetuning:
            return None
        tasks = ", ".join(self._submission.options.tasks)
        missing = ", ".join(dict.fromkeys(fetched))
        return tasks + (f"; will be downloaded by their jobs: {missing}" if missing else "")

    def _plan(self, run: Run[PretrainConfig]) -> Plan:
        if run.folder not in self._plans:
            local = self._job.ranks_per_node
            self._plans[run.folder] = make_plan(
                run.config, Ranks(0, self._job.world_size, 0, local)
            )
        return self._plans[run.folder]

    def _classes(self, run: Run[PretrainConfig]) -> int:
        """Outputs of the head; of the config, or guessed, where the data may not be looked at."""
        if "data" in self._submission.options.skip:
            return run.config.model.num_classes or 1000
        return self._plan(run).num_classes


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise RefusedInput(
            f"run_dir = {folder}: {there} cannot be written to; give another --run-dir"
        )


def _check_folder(run: Run[PretrainConfig], plan: Plan, is_followed: bool) -> None:
    """Refuse a folder that holds another run, or one that has nothing left to do."""
    if not RunFolder(run.folder).is_used():
        if run.config.resume == "must":
            raise RefusedInput(f"resume = must, but {run.folder} holds no run to go on with")
        return
    finished = check_start(plan)
    if finished and not is_followed:
        raise RefusedInput(finished)


def _check_task(config: FinetuneConfig, pretrained: PretrainConfig, world_size: int) -> None:
    split_batch(config.batch, world_size)
    if config.resolution is not None:
        try:
            check_resolution(config.resolution, pretrained.model.patch_px)
        except RefusedInput as problem:
            raise RefusedInput(f"task {config.task}: {problem} (--finetune-options)") from None
