"""What a validation does with an open run, stage by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch
import xxhash

from configs.errors import RefusedInput
from launch.validation.stages import Stages
from pretrain.agreement import on_main
from pretrain.checkpoint import finish_saving, restore, save_when_due
from pretrain.export import export
from pretrain.few_shot import probe
from pretrain.report import report
from pretrain.state import Training
from pretrain.step import train_step
from pretrain.validation import validate

STEPS = 2


@dataclass(frozen=True)
class Measured:
    """What the stages came to on this rank.

    Attributes:
        device: "cpu" or "cuda".
        precision: Of the passes.
        images_per_second: Of all ranks, in the second step.
        memory_bytes: The most that tensors took on a GPU; resident memory on a CPU.
        checkpoint_bytes: Of all files of the checkpoint.
    """

    device: str
    precision: str
    images_per_second: float
    memory_bytes: int
    checkpoint_bytes: int


def run_stages(training: Training, stages: Stages) -> Measured:
    """Two steps, an evaluation, a save, a reload and the export; a collective.

    Raises:
        RefusedInput: The data has more broken images than are tolerated.
        StageFailed: A stage failed in another way.
    """
    with stages.stage("two steps"):
        seconds = _two_steps(training)
    with stages.stage("evaluation"):
        validate(training)
        probe(training)
    with stages.stage("save"):
        save_when_due(training, is_due=True, saves_written=0)
        finish_saving(training)
    with stages.stage("reload"):
        saved_bytes = _reload(training)
    with stages.stage("export"):
        export(training)
    is_cuda = training.device.type == "cuda"
    return Measured(
        device=training.device.type,
        precision=training.precision,
        images_per_second=training.plan.config.batch.global_images / seconds,
        memory_bytes=torch.cuda.max_memory_allocated()
        if is_cuda
        else psutil.Process().memory_info().rss,
        checkpoint_bytes=saved_bytes,
    )


def _two_steps(training: Training) -> float:
    """Make two updates, the first of which warms up; gives the seconds of the second."""
    seconds = 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        train_step(training)
        if training.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        report(training)
    if training.health.skipped:
        raise RefusedInput(
            f"{training.health.skipped} of {STEPS} updates were left out, because loss or gradient "
            "is not finite (the warning above says where): look at those images, lower optim.lr "
            "or precision"
        )
    return seconds


def _reload(training: Training) -> int:
    """Change the state by a step, load the checkpoint and compare; gives the checkpoint's bytes."""
    expected = _digest(training)
    found = on_main(training.store.newest_complete)
    if found is None or found.step != STEPS:
        raise RuntimeError(f"the checkpoint of step {STEPS} is not in {training.store.folder}")
    train_step(training)
    restore(training, found)
    training.loader.skip_to(training.position)
    if _digest(training) != expected:
        raise RuntimeError("what was loaded differs from what was saved")
    return sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())


def _digest(training: Training) -> str:
    """Of this rank's part of weights, moments and average, and of the place in the data."""
    ranks, digest = training.plan.ranks, xxhash.xxh3_64()
    for fragment in training.tensors.own_fragments(ranks.rank, ranks.world_size):
        for kind, tensor in training.tensors.tensors_of(fragment).items():
            digest.update(f"{kind}/{fragment.name}/{fragment.start}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return f"{digest.hexdigest()} {training.step} {training.position}"
