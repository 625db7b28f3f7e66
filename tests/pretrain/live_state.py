"""Counts the bytes of the tensors that one rank of a real run holds, by what they are for."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pretrain.step
from configs.deepspeed_options import deepspeed_options
from pretrain.checkpoint import finish_saving, save_when_due
from pretrain.plan import Plan
from pretrain.state import Training
from pretrain.state_memory import StateMemory, checkpoint_bytes, state_memory
from training.precision import Precision

# Enough blocks for no single matrix to matter; images so small that activations do not.
OPTIONS: dict[str, Any] = {
    "model.width": 192,
    "model.depth": 12,
    "model.heads": 3,
    "model.image-px": 16,
    "batch.global-images": 8,
    "batch.micro-images": 2,
}


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes of each memory that the tensors use, counted once, by its address."""
    found = (tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor))
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def count_one_step(training: Training) -> dict[str, int]:
    """Make one update, and another one slowly; bytes of what is held meanwhile.

    `weights`, `optimizer`, `gradients` (what is neither of them, once all gradients are there),
    `gathered` (weights beyond those while the loss is there), `checkpoint` (of all ranks' files).
    """
    pretrain.step.train_step(training)
    engine, plan = training.engine, training.plan
    gathered = 0
    for micro_step in range(plan.accumulation_steps):
        loss = pretrain.step._loss(training, *next(training.loader).to(training.device))
        gathered = sum(weights(engine).values())
        engine.backward(loss)
        del loss
        if micro_step + 1 < plan.accumulation_steps:
            engine.step()
    counted = min((by_purpose(training) for _ in range(5)), key=lambda kinds: kinds["gradients"])
    engine.step()
    training.step += 1
    training.position += plan.config.batch.global_images
    save_when_due(training, is_due=True, saves_written=0)
    finish_saving(training)
    newest = training.store.newest_complete()
    files = newest.folder.rglob("*") if newest else iter(())
    return {
        **counted,
        "gathered": gathered - counted["weights"],
        "checkpoint": sum(path.stat().st_size for path in files if Path(path).is_file()),
    }


def check_counted(
    counted: dict[str, int], sizes: list[int], plan: Plan, precision: Precision
) -> StateMemory:
    """Compare with the memory model; gives that back. Host and device are one memory on a CPU."""
    config = plan.config
    options = deepspeed_options(
        config,
        micro_images=plan.micro_images,
        accumulation_steps=plan.accumulation_steps,
        precision=precision,
    )
    has_average = config.optim.ema_decay is not None
    told = state_memory(
        sizes,
        stage=config.zero.stage,
        world_size=plan.ranks.world_size,
        deepspeed=options,
        average=has_average,
    )
    assert counted["weights"] == pytest.approx(told.weights, rel=0.1)
    elsewhere = told.optimizer + told.gradients + told.average + told.host
    assert counted["optimizer"] + counted["gradients"] == pytest.approx(elsewhere, rel=0.1)
    if not told.host:
        assert counted["optimizer"] == pytest.approx(told.optimizer, rel=0.1)
    assert counted["checkpoint"] == pytest.approx(
        checkpoint_bytes(sum(sizes), has_average), rel=0.1
    )
    return told


def weights(engine: Any) -> dict[int, int]:
    """What forward and backward passes compute with, ZeRO 3's own parts included."""
    parameters = list(engine.module.parameters())
    return storages([p.data for p in parameters] + [getattr(p, "ds_tensor", 0) for p in parameters])


def by_purpose(training: Training) -> dict[str, int]:
    """Bytes of weights, of optimizer state and of all the rest but DeepSpeed's buckets."""
    engine = training.engine
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    groups = [p for group in inner.param_groups for p in group["params"]]
    masters = groups + list(getattr(engine.optimizer, "fp32_partitioned_groups_flat", ()))
    moments = [value for state in inner.state.values() for value in state.values()]
    of_weights = weights(engine)
    of_optimizer = {
        key: size
        for key, size in storages([p.data for p in masters] + moments).items()
        if key not in of_weights
    }
    # Gloo's threads hold the tensors of the last collective until they have the next one.
    dist.barrier()
    time.sleep(0.1)
    # A gradient that only C++ holds becomes visible once it was asked for.
    held = [p.grad for p in [*engine.module.parameters(), *masters]]
    gc.collect()
    alive = storages(held + [o for o in gc.get_objects() if isinstance(o, torch.Tensor)])
    rest = {
        key: size
        for key, size in alive.items()
        if key not in of_weights and key not in of_optimizer and size < 500_000_000
    }
    return {
        "weights": sum(of_weights.values()),
        "optimizer": sum(of_optimizer.values()),
        "gradients": sum(rest.values()),
    }
