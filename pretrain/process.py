"""This process before training: its device, its threads, its random state, its group."""

from __future__ import annotations

import logging
import os

import deepspeed
import torch

from configs.errors import RefusedInput
from data_pipeline.order import random_generator
from pretrain.plan import Plan, Ranks
from training.precision import Precision, resolve_precision
from training.processes import default_threads, make_deterministic, set_seed

logger = logging.getLogger(__name__)


def set_up_process(plan: Plan) -> torch.device:
    """Join the other ranks; returns the device to compute on.

    Raises:
        RefusedInput: There are more ranks on this machine than GPUs.
    """
    ranks = plan.ranks
    if plan.config.deterministic:
        make_deterministic()
    accelerator = deepspeed.get_accelerator()
    if accelerator.device_name() == "cpu":
        torch.set_num_threads(_cpu_threads(ranks))
    elif ranks.local_world_size > accelerator.device_count():
        raise RefusedInput(
            f"{ranks.local_world_size} ranks were started on this machine, which has "
            f"{accelerator.device_count()} GPUs; start as many ranks as GPUs, or set "
            "DS_ACCELERATOR=cpu to compute on the CPU"
        )
    else:
        accelerator.set_device(ranks.local_rank)
    # DeepSpeed would compile a C++ extension here, half a minute at the first start, which on CPU
    # only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    seed_ranks_apart(plan.config.seed, 0, ranks.rank)
    return torch.device(accelerator.current_device_name())


def choose_precision(plan: Plan, device: torch.device) -> Precision:
    """The precision to compute in.

    Raises:
        RefusedInput: fp16 on a device without it; bf16 or fp16 with ZeRO stage 0, where gradients
            could not accumulate in fp32.
    """
    zero = plan.config.zero
    precision = resolve_precision(plan.config.precision, device.type)
    if precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
        raise RefusedInput(
            f"precision = fp16: {device.type} does not multiply fp16 here; use --precision auto"
        )
    if precision == "fp32":
        return precision
    if zero.stage == 0 and plan.config.precision == "auto":
        logger.warning("computing in fp32: with zero.stage = 0, bf16 has no fp32 gradients")
        return "fp32"
    if zero.stage == 0:
        raise RefusedInput(
            f"precision = {precision} with zero.stage = 0: DeepSpeed would accumulate gradients in "
            f"{precision}; use --zero.stage 1 (on a single GPU it costs nothing), or --precision "
            "fp32"
        )
    return precision


def seed_ranks_apart(seed: int, step: int, rank: int) -> None:
    """Seed the generators that dropout and stochastic depth draw from, differently on each rank."""
    raw = random_generator("rank", seed, step, rank).bit_generator.random_raw()
    set_seed(int(raw) % 2**63)


def _cpu_threads(ranks: Ranks) -> int:
    """Threads of one rank's tensor operations: the cores, shared among the machine's ranks.

    OMP_NUM_THREADS wins, unless torchrun set it: it writes 1 into every rank that has none.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given and not (given == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        return int(given)
    return default_threads(ranks.local_world_size)
