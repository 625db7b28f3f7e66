"""The state of a training run, and how it is built: model, optimizer, engine, data, tracked run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from configs.load import flatten
from data_pipeline.augment import TrainTransform
from data_pipeline.broken import BrokenRecord
from data_pipeline.loader import TrainLoader
from models.flops import forward_flops_per_image
from models.zoo import Architecture, choose_attention
from pretrain.engine import build_engine
from pretrain.health import Health
from pretrain.loss_scale import LossScale
from pretrain.norms import GroupNorms
from pretrain.plan import Plan
from pretrain.profiling import StepProfiler
from pretrain.saver import Saver
from pretrain.step_vote import StepVote
from pretrain.training_tensors import TrainingTensors
from pretrain.watchdog import Watchdog
from pretrain.weight_average import WeightAverage
from tracking.run import Status, TrackedRun, start_run
from training.augmentation import BatchAugmentation
from training.checkpoint_store import CheckpointStore
from training.console import ProgressLine
from training.gpus import peak_flops
from training.phases import OTHER, PhaseTimer
from training.precision import Precision
from training.processes import default_threads
from training.run_folder import RunFolder, RunState
from training.throughput import ThroughputMeter

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Training:
    """A run in progress.

    Attributes:
        plan: What is to be done.
        folder: The run folder.
        store: Its checkpoints.
        device: Where this rank computes.
        precision: Of forward and backward passes.
        architecture: Of the model.
        engine: DeepSpeed's, around model and optimizer.
        loss_scale: Of fp16.
        average: Of the weights; None where none is kept.
        tensors: The fp32 state of both.
        augmentation: What is done to batches on the device.
        meter: Throughput since the last log line.
        phases: Where the time since then went.
        norms: Of groups of layers; None where they are not logged.
        profiler: Traces the steps that are to be profiled.
        saver: Writes checkpoints.
        watchdog: Ends the process when nothing happens any more; None waits for ever.
        step_vote: How the ranks agree to stop, and that a save is written.
        health: What went wrong so far, and what is to be done about it.
        step: Steps made; those whose update was left out count.
        position: Global position of the next batch's first image.
        losses: This rank's loss of each step since the last log line, on the device.
        gradient_norm: Of the last update, over all ranks, before clipping.
        validation: Metrics of the last evaluation, by name.
        evaluation_pending: Whether the evaluation of this step is due and has not been made.
        broken: Unreadable training images that all ranks together know of, by row.
        resumed_from_steps: Steps at which earlier processes handed over, in order.
        seconds_before: Time the processes before this one trained.
        tracked: Journal and MLflow run; from `begin` on.
        loader: Training batches from `position` on; from `begin` on.
        progress: Lines and bar on the console; from `begin` on.
    """

    plan: Plan
    folder: RunFolder
    store: CheckpointStore
    device: torch.device
    precision: Precision
    architecture: Architecture
    engine: Any
    loss_scale: LossScale
    average: WeightAverage | None
    tensors: TrainingTensors
    augmentation: BatchAugmentation
    meter: ThroughputMeter
    phases: PhaseTimer
    norms: GroupNorms | None
    profiler: StepProfiler
    saver: Saver
    step_vote: StepVote
    health: Health
    watchdog: Watchdog | None = None
    step: int = 0
    position: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    gradient_norm: torch.Tensor | float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    evaluation_pending: bool = False
    broken: dict[int, BrokenRecord] = field(default_factory=dict)
    resumed_from_steps: list[int] = field(default_factory=list)
    seconds_before: float = 0.0
    tracked: TrackedRun = field(init=False)
    loader: TrainLoader = field(init=False)
    progress: ProgressLine = field(init=False)
    _started: float = field(default_factory=time.monotonic)

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's input and its weights on the device."""
        return _DTYPES[self.precision]

    @property
    def is_finished(self) -> bool:
        """Whether every step and every evaluation has been made."""
        return self.step >= self.plan.total_steps and not self.evaluation_pending

    def seconds(self) -> float:
        """Time spent on this run so far, by this process and those before it."""
        return self.seconds_before + time.monotonic() - self._started

    def begin(self) -> None:
        """Open the journal, start reading at `position`, and let the console begin at `step`."""
        plan, config = self.plan, self.plan.config
        self.tracked = start_run(
            plan.run_dir,
            config.tracking,
            stage="pretrain",
            params=flatten(config),
            tags={},
            is_main=plan.ranks.is_main,
        )
        self.loader = TrainLoader(
            plan.train,
            plan.order,
            transform=TrainTransform(
                config.augment,
                self.architecture.image_px,
                config.seed,
                decode=config.data.decode,
            ),
            batch_images=plan.micro_images,
            rank=plan.ranks.rank,
            world_size=plan.ranks.world_size,
            position=self.position,
            loader=config.loader,
            threads=config.loader.threads or default_threads(plan.ranks.local_world_size),
            max_broken_fraction=config.data.max_broken_fraction,
            quarantine=list(self.broken.values()),
            refuse_alone=False,
        )
        self.progress = ProgressLine(plan.total_steps, self.step)

    @contextlib.contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """Let the block be a phase whose time does not count for the images per second."""
        with self.meter.pause(), self.phases.within(phase):
            yield

    def profile_if_due(self) -> None:
        """Begin or end a profile where `step` is the step for it."""
        if self.profiler.is_due(self.step):
            with self.aside(OTHER):
                self.profiler.reached(self.step)

    def watching_norms(self) -> contextlib.AbstractContextManager[None]:
        """Around the update that follows `step`: its norms, if a log line follows it."""
        if self.norms is None:
            return contextlib.nullcontext()
        every_steps = self.plan.config.logging.every_steps
        return self.norms.watching(self.plan.is_due(every_steps, self.step + 1))

    def write_status(self, state: RunState, **details: Any) -> None:
        """Say in status.json how the run is doing at `step`."""
        resumed = {"resumed_from_steps": self.resumed_from_steps}
        self.folder.write_status(
            state, self.step, total_steps=self.plan.total_steps, **resumed, **details
        )

    def beat(self) -> None:
        """Tell the watchdog that something was achieved."""
        if self.watchdog is not None:
            self.watchdog.beat(self.step)

    def end(self, status: Status) -> None:
        """End the threads, take the bar away, and send the rest of the journal."""
        self.profiler.close(self.step)
        if self.watchdog is not None:
            self.watchdog.close()
        if hasattr(self, "loader"):
            self.loader.close()
        if hasattr(self, "progress"):
            self.progress.close()
        if hasattr(self, "tracked"):
            self.tracked.close(status)


def build_training(
    plan: Plan,
    folder: RunFolder,
    store: CheckpointStore,
    device: torch.device,
    precision: Precision,
) -> Training:
    """Build a run at step 0: random weights, nothing read yet.

    A collective: DeepSpeed gives every rank the weights of rank 0, or its part of them.
    """
    config = plan.config
    choose_attention(device.type)
    architecture = Architecture.from_config(config.model, plan.num_classes)
    engine = build_engine(plan, architecture, precision)
    decay = config.optim.ema_decay
    average = WeightAverage(engine, decay) if decay is not None else None
    tensors = TrainingTensors(engine, average)
    return Training(
        plan=plan,
        folder=folder,
        store=store,
        device=device,
        precision=precision,
        architecture=architecture,
        engine=engine,
        loss_scale=LossScale(engine),
        average=average,
        tensors=tensors,
        augmentation=BatchAugmentation(
            config.augment,
            config.seed,
            global_images=config.batch.global_images,
            world_size=plan.ranks.world_size,
            micro_images=plan.micro_images,
        ),
        meter=ThroughputMeter(
            config.batch.global_images,
            forward_flops_per_image(architecture),
            peak_flops(config.logging.peak_tflops, device, precision),
            plan.ranks.world_size,
        ),
        phases=PhaseTimer(device),
        norms=GroupNorms(engine, device) if config.logging.group_norms else None,
        profiler=StepProfiler(plan, device),
        saver=Saver(store, tensors, plan.ranks.rank, plan.ranks.world_size),
        step_vote=StepVote(device, plan.ranks.world_size),
        health=Health(config.health),
    )
