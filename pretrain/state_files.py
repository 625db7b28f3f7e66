"""Files of a checkpoint's master weights and moments: one per rank, readable in any division.

Each is a safetensors file with a flat fp32 tensor per kind and parameter ("master/blocks.0...")
and, in its header, where in the parameter each starts. Nothing in them depends on DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.zoo import Architecture, build_model

MASTER = "master"
AVERAGE = "average"
_STARTS = "starts"


def state_file(rank: int) -> str:
    """Name of the file with a rank's master weights and moments."""
    return f"state-{rank:05d}.safetensors"


def rank_file(rank: int) -> str:
    """Name of the file with what is a rank's own, such as its random states."""
    return f"rank-{rank:05d}.pt"


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], starts: Mapping[str, int]) -> None:
    """Write one rank's file.

    Args:
        path: Where to.
        tensors: Flat tensors on the CPU by "kind/parameter"; none shares memory with another.
        starts: First element of each in its parameter.
    """
    save_file(dict(tensors), path, metadata={_STARTS: json.dumps(dict(starts))})


class SavedState:
    """What the ranks' files of one checkpoint hold together; reads only what is asked for."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the headers.

        Raises:
            OSError, safetensors.SafetensorError: A file cannot be read.
        """
        self._pieces: dict[str, list[tuple[int, int, safe_open]]] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            starts = json.loads(file.metadata()[_STARTS])
            for name, start in starts.items():
                numel = file.get_slice(name).get_shape()[0]
                self._pieces.setdefault(name, []).append((start, start + numel, file))

    def has(self, kind: str) -> bool:
        """Whether anything of this kind was saved."""
        return any(name.startswith(f"{kind}/") for name in self._pieces)

    def read(self, name: str, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of "kind/parameter", flat.

        Raises:
            RuntimeError: Some of them are in no file.
        """
        parts, at, end = [], start, start + numel
        for first, last, file in sorted(self._pieces.get(name, []), key=lambda piece: piece[0]):
            if first <= at < min(last, end):
                stop = min(last, end)
                parts.append(file.get_slice(name)[at - first : stop - first])
                at = stop
        if at < end:
            raise RuntimeError(f"elements {at} to {end - 1} of {name} are in no file")
        return torch.cat(parts)


def saved_weights(
    saved: SavedState, kind: str, architecture: Architecture
) -> dict[str, torch.Tensor]:
    """The fp32 weights of a kind (`MASTER`, `AVERAGE`) by name, in their shapes."""
    return {
        name: saved.read(f"{kind}/{name}", 0, parameter.numel()).view(parameter.shape)
        for name, parameter in build_model(architecture, device="meta").named_parameters()
    }
