"""Our pretraining as a contestant: the product's loop on DeepSpeed's engine, one GPU, one rank."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_case import TOY, Case
from benchmarks.step_overhead import FixedBatch, our_steps, save_nothing
from launch.slurm_env import set_rank_variables

LOG_EVERY_STEPS = 50


class BatchOnDevice(FixedBatch):
    """Always has the same batch, which is on the device already."""

    def __init__(self, loader: Any, device: Any, *, channels_last: bool) -> None:
        """Take one batch of the real loader to the device."""
        import torch

        super().__init__(loader)
        images, labels = self.batch.to(device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.batch = dataclasses.replace(self.batch, images=images, labels=labels)

    def copy_ahead(self, _device: Any) -> None:
        """Nothing: there is no next batch."""


class ChannelsLast:
    """The real loader, its batches on the device with channels last."""

    def __init__(self, loader: Any, device: Any) -> None:
        """Stand before `loader`."""
        self.loader = loader
        self.device = device

    def __next__(self) -> Any:
        """The loader's next batch."""
        import torch

        batch = next(self.loader)
        images, labels = batch.to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return dataclasses.replace(batch, images=images, labels=labels)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real loader's."""
        return getattr(self.loader, name)


def arguments_of(case: Case, options: argparse.Namespace, run_dir: Path) -> list[str]:
    """The run's options."""
    batch = case.batch_images(options)
    shape = TOY if options.toy else {"patch_px": case.model.patch_px}
    values: dict[str, Any] = {
        "model.size": case.size,
        **{f"model.{name}": value for name, value in shape.items()},
        "batch.global_images": batch,
        "batch.micro_images": batch // case.accumulation_steps,
        "precision": "bf16",
        "zero.stage": options.zero,
        "optim.clip_norm": 1.0,
        "schedule.total_steps": 1_000_000,
        "logging.every_steps": LOG_EVERY_STEPS,
        "data.train": options.shards,
        "loader.threads": options.workers if case.data == "real" else 2,
        "run_dir": run_dir,
    }
    if case.variant == "checkpoint":
        values["model.checkpoint_blocks"] = 1
    if case.variant == "decode_cuda":
        values["data.decode"] = "cuda"
    words = [w for k, v in values.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return [*words, "--tracking.no-enabled", *(["--compile"] if case.variant == "compile" else [])]


@contextmanager
def steps(
    case: Case, options: argparse.Namespace, folder: Path
) -> Iterator[tuple[Callable[[int], None], int]]:
    """A function that makes so many steps, and the model's number of parameters."""
    set_rank_variables(os.environ)
    from pretrain.deepspeed_import import import_deepspeed

    import_deepspeed()
    import torch

    from configs.load import load_config
    from configs.schema import PretrainConfig
    from pretrain.plan import Ranks, make_plan
    from pretrain.session import open_training

    arguments = arguments_of(case, options, folder / "run")
    config = load_config(PretrainConfig, arguments, "gpu_pretrain").config
    save_nothing()
    with open_training(make_plan(config, Ranks(0, 1, 0, 1))) as training:
        is_last = case.variant == "channels_last"
        real: Any = training.loader
        if case.data == "synthetic":
            training.loader = BatchOnDevice(real, training.device, channels_last=is_last)  # type: ignore[assignment]
        elif is_last:
            training.loader = ChannelsLast(real, training.device)  # type: ignore[assignment]
        if case.variant == "cuda_graphs":
            training.engine.compile(compile_kwargs={"mode": "reduce-overhead"})
        if case.variant == "cudnn_search":
            torch.backends.cudnn.benchmark = True
        if case.variant == "foreach":  # instead of one fused kernel
            for group in training.engine.basic_optimizer.param_groups:
                group["fused"], group["foreach"] = False, True
        parameters = sum(p.numel() for p in training.engine.module.parameters())
        yield lambda count: our_steps(training, count), parameters
        training.plan = dataclasses.replace(training.plan, total_steps=training.step)
