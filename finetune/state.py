"""Everything a transfer consists of while it runs, and how it is put together."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from configs.batch_split import split_batch
from configs.schema import FinetuneConfig
from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.index import ShardedDataset
from data_pipeline.loader import EvalLoader, TrainLoader
from data_pipeline.order import SampleOrder, random_generator
from data_pipeline.resizing import Resizing
from finetune.progress import Progress
from finetune.start import Start, StateDict
from finetune.task_data import TaskData
from models.flops import forward_flops_per_image
from training.augmentation import BatchAugmentation
from training.checkpoint_store import CheckpointStore
from training.gpus import peak_flops
from training.mixup import pairing
from training.precision import Precision, resolve_precision
from training.processes import (
    default_threads,
    local_world_size,
    make_deterministic,
    set_seed,
    world_size,
)
from training.run_folder import RunFolder
from training.schedule import fit_warmup
from training.throughput import ThroughputMeter

logger = logging.getLogger(__name__)

# Of the sample order; pretraining's default (the tasks' shards are local files).
STREAMS = 768
# Building the shards of a large task keeps the other processes waiting in a collective this long.
_PATIENCE = timedelta(hours=12)


@dataclass
class TransferState:
    """One run. `chosen` holds the weights of the best learning rate so far, on the CPU."""

    config: FinetuneConfig
    accelerator: Accelerator
    folder: RunFolder
    data: TaskData
    start: Start
    model: nn.Module
    optimizer: Any
    loader: TrainLoader
    augmentation: BatchAugmentation
    validation: EvalLoader
    test: EvalLoader
    progress: Progress
    store: CheckpointStore
    meter: ThroughputMeter
    accumulation_steps: int
    warmup_steps: int
    chosen: StateDict | None = None
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Time spent training and validating, over all starts of the run."""
        return self.progress.seconds + time.monotonic() - self.started

    @property
    def precision(self) -> str:
        """Of the forward pass: "fp32" or "bf16"; weights and updates are fp32."""
        return "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32"

    def bare_model(self) -> nn.Module:
        """The model without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)


def make_accelerator(config: FinetuneConfig) -> Accelerator:
    """Join the other processes, if there are any, on this process's device."""
    if config.deterministic:
        make_deterministic()
    _, accumulation_steps = split_batch(config.batch, world_size())
    return join_processes(config.precision, accumulation_steps)


def join_processes(
    wanted: Literal["auto", "fp32", "bf16"], accumulation_steps: int = 1
) -> Accelerator:
    """Join the other processes, computing in the precision that is wanted."""
    use_cpu = not torch.cuda.is_available() or _cpu_was_asked_for()
    precision = resolve_precision(wanted, "cpu" if use_cpu else "cuda")
    return Accelerator(
        # Said outright: left to itself, Accelerate forms no process group without a GPU.
        cpu=use_cpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=accumulation_steps,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def leave_processes(accelerator: Accelerator) -> None:
    """Leave the process group, once nothing uses it any more.

    Accelerate and the wrapped model hold on to it, and its threads would then live until the
    interpreter is half gone: gloo's abort the process at that point, now and then.
    """
    accelerator.free_memory()
    accelerator.end_training()


def _cpu_was_asked_for() -> bool:
    """Whether `accelerate launch --cpu` started this process."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def launched_in_vain() -> str | None:
    """A notice when `accelerate launch` was asked for several CPU processes and started one."""
    environment = os.environ
    # It sets an address for the others, but without MPI it starts none.
    if _cpu_was_asked_for() and "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        return (
            "`accelerate launch --cpu` starts one process whatever --num_processes says; for "
            "several on CPU: accelerate launch --multi_gpu --num_processes N (without --cpu)"
        )
    return None


def build_state(
    config: FinetuneConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    data: TaskData,
    start: Start,
) -> TransferState:
    """Put a run together, standing before its first step.

    Raises:
        RefusedInput: The batch does not divide, or a crop is smaller than the input.
    """
    ranks = accelerator.num_processes
    micro_images, accumulation_steps = split_batch(config.batch, ranks)
    warmup_steps, notice = fit_warmup(config.warmup_steps, config.steps)
    if notice:
        logger.warning(notice)
    seed_dropout(config.seed, 0, accelerator.process_index)
    optimizer = torch.optim.SGD(start.model.parameters(), lr=0.0, momentum=config.momentum)
    model, optimizer = accelerator.prepare(start.model, optimizer)
    return TransferState(
        config=config,
        accelerator=accelerator,
        folder=folder,
        data=data,
        start=start,
        model=model,
        optimizer=optimizer,
        loader=_train_loader(config, accelerator, data.train, start, micro_images),
        augmentation=_augmentation(config, ranks, micro_images),
        validation=_eval_loader(config, accelerator, data.validation, start),
        test=_eval_loader(config, accelerator, data.test, start),
        progress=Progress(config.learning_rates, config.steps),
        store=CheckpointStore(
            folder.checkpoints,
            keep=config.checkpoint.keep,
            milestone_every_steps=config.checkpoint.milestone_every_steps,
        ),
        meter=_meter(config, accelerator, start),
        accumulation_steps=accumulation_steps,
        warmup_steps=warmup_steps,
    )


def _augmentation(config: FinetuneConfig, ranks: int, micro_images: int) -> BatchAugmentation:
    if config.augment.mixup_alpha:
        notice = pairing(config.batch.global_images, ranks, micro_images).notice()
        if notice:
            logger.warning(notice)
    return BatchAugmentation(
        config.augment,
        config.seed,
        global_images=config.batch.global_images,
        world_size=ranks,
        micro_images=micro_images,
    )


def seed_dropout(seed: int, total_step: int, rank: int) -> None:
    """Seed the generators that dropout draws from, differently on every rank."""
    set_seed(int(random_generator("dropout", seed, total_step, rank).integers(2**31)))


def _resize_px(start: Start) -> int:
    """Shorter side of a resized image before it is cropped to the input, unless it is given."""
    # 448 for 384, the published code's sizes; pretraining's 256 for 224 is another ratio.
    return round(min(start.architecture.image_px) * 7 / 6)


def _train_loader(
    config: FinetuneConfig,
    accelerator: Accelerator,
    dataset: ShardedDataset,
    start: Start,
    micro_images: int,
) -> TrainLoader:
    resize_px = config.augment.resize_px or _resize_px(start)
    augment = config.augment.model_copy(update={"resize_px": resize_px})
    return TrainLoader(
        dataset,
        SampleOrder(dataset, num_streams=STREAMS, seed=config.seed),
        transform=TrainTransform(augment, start.architecture.image_px, config.seed),
        batch_images=micro_images,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        loader=config.loader,
        threads=_threads(config),
        max_broken_fraction=config.max_broken_fraction,
        refuse_alone=False,
    )


def _eval_loader(
    config: FinetuneConfig, accelerator: Accelerator, dataset: ShardedDataset, start: Start
) -> EvalLoader:
    resize_px = config.eval_resize_px or _resize_px(start)
    return EvalLoader(
        dataset,
        transform=EvalTransform(
            start.architecture.image_px, resize_px, resizing=Resizing.of(config.augment)
        ),
        batch_images=config.evaluation.batch_images,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        loader=config.loader,
        threads=_threads(config),
        max_broken_fraction=config.max_broken_fraction,
        refuse_alone=False,
    )


def _threads(config: FinetuneConfig) -> int:
    return config.loader.threads or default_threads(local_world_size())


def _meter(config: FinetuneConfig, accelerator: Accelerator, start: Start) -> ThroughputMeter:
    precision: Precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    return ThroughputMeter(
        images_per_step=config.batch.global_images,
        flops_per_image=forward_flops_per_image(start.architecture),
        peak_flops=peak_flops(config.logging.peak_tflops, accelerator.device, precision),
        world_size=accelerator.num_processes,
    )
