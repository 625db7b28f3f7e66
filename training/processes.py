"""Facts about this process among its fellows, and the random state it carries.

Ranks come from torch.distributed once it is set up, before that from the environment that
`torchrun`, `deepspeed` and `accelerate launch` leave (`launch.slurm_env` fills it under `srun`).
Torch is imported only by the functions that need it.
"""

from __future__ import annotations

import os
import random
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """Global rank of this process, 0 when it is alone."""
    group = _process_group()
    return group.get_rank() if group else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks, 1 when this process is alone."""
    group = _process_group()
    return group.get_world_size() if group else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Rank among the processes of this machine; the number of the device to use."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of ranks on this machine (`deepspeed` calls it LOCAL_SIZE)."""
    environment = os.environ
    return int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or "1")


def is_main() -> bool:
    """Whether this process is the one that writes the run folder and talks to people."""
    return rank() == 0


def default_threads(local_ranks: int) -> int:
    """Decoding threads of one rank: the cores this process may use, shared among `local_ranks`.

    Under `srun --cpus-per-task=N` a rank's share is already N.
    """
    share = os.environ.get("SLURM_CPUS_PER_TASK")
    if share and "SLURM_PROCID" in os.environ:
        return max(1, int(share))
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // max(1, local_ranks))


def set_seed(seed: int) -> None:
    """Seed torch (all devices), numpy's legacy generator and Python's `random`."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def make_deterministic() -> None:
    """Ask for deterministic kernels; call it before the first CUDA operation.

    An operation that has none warns once instead of failing. CPU runs are deterministic anyway.
    """
    import torch

    # cuBLAS reads this when its handle is made: a fixed workspace keeps one order of reduction.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def capture_rng_state() -> dict[str, Any]:
    """Random states of torch, this rank's CUDA device, numpy and Python.

    Tensors and plain values only, so that `torch.load(..., weights_only=True)` reads it back.
    """
    import numpy as np
    import torch

    kind, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (
            str(kind),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(cached_gaussian),
        ),
        "python": random.getstate(),
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Undo whatever happened to the generators since `capture_rng_state` gave `state`.

    A CUDA state is left out where there is no CUDA device.
    """
    import numpy as np
    import torch

    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached_gaussian))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is true on at least one rank. A collective: every rank must call it.

    Args:
        flag: This rank's answer.
        device: Where the backend can reduce a tensor: "cpu" for gloo, this rank's GPU for nccl.
    """
    group = _process_group()
    if group is None or group.get_world_size() == 1:
        return flag
    import torch

    votes = torch.tensor([int(flag)], dtype=torch.int32, device=device)
    group.all_reduce(votes, op=group.ReduceOp.MAX)
    return bool(votes.item())


def of_all_ranks(values: torch.Tensor) -> torch.Tensor:
    """The values (n, ...) of all ranks, which may have different n, one rank after the other.

    A collective; every rank's tensor has the same kind and the same shape behind n.
    """
    import torch
    import torch.distributed as dist

    ranks = range(dist.get_world_size())
    counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in ranks]
    dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
    longest = max(int(count) for count in counts)
    # Bytes, because not every backend gathers booleans.
    padded = values.new_zeros((longest, *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded.view(torch.uint8)) for _ in ranks]
    dist.all_gather(parts, padded.view(torch.uint8))
    return torch.cat(
        [part.view(values.dtype)[: int(count)] for part, count in zip(parts, counts, strict=True)]
    )


def _process_group() -> Any:
    """torch.distributed if a process group is set up, else None; never imports torch itself."""
    torch_module = sys.modules.get("torch")
    if torch_module is None or not torch_module.distributed.is_available():
        return None
    return torch_module.distributed if torch_module.distributed.is_initialized() else None
