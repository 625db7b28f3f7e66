"""timm's training as a contestant: composed of timm's parts as its train.py does, or that script.

timm's wheel has no train.py. `steps` calls the same parts of timm in the same order, for one GPU
without DistributedDataParallel: create_model, ClassificationTask, create_optimizer_v2, autocast to
bf16 (which takes no loss scaler there), clipping of the norm, and the loss read at every micro
batch, which its loop does to average it. `run_script` runs a checkout's train.py itself.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from benchmarks.gpu_case import TOY, Case, compute_device
from benchmarks.loader_peers import MEAN, STD, shard_range, timm_loader

OPTIMIZER = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05}
CLIP_NORM = 1.0
# Its loader starts its epochs anew; this many images keep that out of the timing.
EPOCH_IMAGES = 1_000_000
_RATE = re.compile(r"Train: .*? Time: [\d.]+s, +([\d.]+)/s")


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What makes timm's model the toy."""
    if not options.toy:
        return {}
    names = ("image_px", "patch_px", "depth", "width", "heads")
    timms = ("img_size", "patch_size", "depth", "embed_dim", "num_heads")
    return {new: TOY[old] for new, old in zip(timms, names, strict=True)}


def num_classes(shards: Path) -> int:
    """Of the shards, so that both models have the same head."""
    return len(json.loads((shards / "manifest.json").read_text())["classes"])


def batches(case: Case, options: argparse.Namespace, device: Any) -> Iterator[Any]:
    """(images, labels) of a micro batch on the device, normalised, as its prefetcher gives them."""
    import torch

    size = case.batch_images(options) // case.accumulation_steps
    px = TOY["image_px"] if options.toy else 224
    if case.data == "synthetic":
        images = torch.randn((size, 3, px, px), device=device)
        labels = torch.randint(num_classes(options.shards), (size,), device=device)
        return repeat((images, labels))
    settings = argparse.Namespace(
        shards=options.shards, px=px, batch_images=size, workers=options.workers
    )
    loader = timm_loader(settings, device, num_samples=EPOCH_IMAGES)
    return chain.from_iterable(repeat(loader))


@contextmanager
def steps(
    case: Case, options: argparse.Namespace, _folder: Path
) -> Iterator[tuple[Callable[[int], None], int]]:
    """A function that makes so many steps, and the model's number of parameters."""
    import torch
    from timm import create_model
    from timm.optim import create_optimizer_v2
    from timm.task import ClassificationTask

    device = compute_device()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    model = create_model(
        case.model.timm_name, num_classes=num_classes(options.shards), **model_arguments(options)
    )
    model.set_grad_checkpointing(case.variant == "checkpoint")
    model.to(device)
    if case.variant == "channels_last":
        model.to(memory_format=torch.channels_last)
    task = ClassificationTask(
        model, criterion_kwargs={"smoothing": 0.0}, device=device, verbose=False
    )
    fused = {"fused": True} if case.variant == "fused" else {}
    optimizer = create_optimizer_v2(task.get_trainable_module(), **OPTIMIZER, **fused)
    if case.variant in ("compile", "cuda_graphs"):
        task.compile(mode="reduce-overhead" if case.variant == "cuda_graphs" else None)
    task.get_trainable_module().train()
    given = batches(case, options, device)

    def run(count: int) -> None:
        for _ in range(count):
            train_step(case, task, optimizer, given)

    yield run, sum(p.numel() for p in model.parameters())


def train_step(case: Case, task: Any, optimizer: Any, given: Iterator[Any]) -> None:
    """One update, in the order of timm's train_one_epoch."""
    import torch
    from timm.utils import dispatch_clip_grad

    for micro_step in range(case.accumulation_steps):
        images, labels = next(given)
        if case.variant == "channels_last":
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = task(images, labels)["loss"]
        (loss / case.accumulation_steps).backward()
        if micro_step + 1 == case.accumulation_steps:
            parameters = task.get_clip_parameters(exclude_head=False)
            dispatch_clip_grad(parameters, value=CLIP_NORM, mode="norm")
            optimizer.step()
        loss.item()  # for the average loss
    optimizer.zero_grad()


def script_command(case: Case, options: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of timm's own train.py for a case."""
    batch = case.batch_images(options)
    updates = options.warm_steps + options.steps * options.blocks
    values: dict[str, Any] = {
        "data-dir": options.shards,
        "dataset": "wds/benchmark",
        "train-split": shard_range(options.shards),
        "val-split": "",
        "train-num-samples": updates * batch,
        "model": case.model.timm_name,
        "num-classes": num_classes(options.shards),
        "device": compute_device().type,
        "amp-dtype": "bfloat16",
        "batch-size": batch // case.accumulation_steps,
        "grad-accum-steps": case.accumulation_steps,
        "opt": OPTIMIZER["opt"],
        "lr": OPTIMIZER["lr"],
        "weight-decay": OPTIMIZER["weight_decay"],
        "clip-grad": CLIP_NORM,
        "smoothing": 0.0,
        "color-jitter": 0.0,
        "train-interpolation": "bicubic",
        "workers": options.workers,
        "epochs": 1,
        "warmup-epochs": 0,
        "log-interval": 1,
        "output": folder,
        "experiment": "timm",
    }
    words = [f"--{name}={value}" for name, value in values.items()]
    words += ["--amp", "--mean", *map(str, MEAN), "--std", *map(str, STD)]
    if options.toy:
        words += ["--model-kwargs", *(f"{k}={v}" for k, v in model_arguments(options).items())]
        words += ["--input-size", "3", *[str(TOY["image_px"])] * 2]
    extra = {
        "compile": ["--torchcompile"],
        "channels_last": ["--channels-last"],
        "checkpoint": ["--grad-checkpointing"],
        "fused": ["--opt-kwargs", "fused=True"],
    }
    return [*words, *extra.get(case.variant, [])]


def run_script(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a checkout's train.py and read its rate out of its log: median of the steps.

    Raises:
        RuntimeError: It failed, or said nothing that looks like a rate.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(options.timm_train), *script_command(case, options, folder)],
        capture_output=True,
        text=True,
        timeout=options.timeout,
        check=False,
        cwd=folder,
    )
    rates = [float(rate) for rate in _RATE.findall(done.stdout + done.stderr)]
    counted = rates[options.warm_steps :]
    if done.returncode or not counted:
        raise RuntimeError(f"timm's train.py failed:\n{(done.stdout + done.stderr)[-2000:]}")
    rate = statistics.median(counted)
    images = case.batch_images(options)
    return {
        "images_per_second": rate,
        "milliseconds_per_step": 1000 * images / rate,
        "batch_images": images,
        "seconds_in_all": time.perf_counter() - began,
    }
