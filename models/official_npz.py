"""The authors' published .npz checkpoints, in both layouts, under timm's names.

Layout of the older code base: names start at `embedding/`, the position embedding is
`Transformer/posembed_input/pos_embedding` and covers the class token. Layout of the newer one:
names start with `params/`, a block's parts are numbered by kind, and the position embedding is
`pos_embedding` at top level, without the class token where it is added later.

Source: https://github.com/google-research/vision_transformer and
https://github.com/google-research/big_vision (the parameter names in their checkpoints).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from configs.errors import RefusedInput
from models.inspect_weights import infer_architecture
from models.weights_card import StateDict, Weights

Arrays = dict[str, np.ndarray]


class _Reader:
    """Takes arrays by name and remembers which were never taken."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self.left = set(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str) -> torch.Tensor:
        self.left.discard(name)
        return torch.from_numpy(self._arrays[name].astype(np.float32))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape


def read_official_npz(path: Path) -> Weights:
    """Read one of the authors' checkpoints.

    What was not used is listed in `left_out`.

    Raises:
        RefusedInput: Not an .npz, damaged, or not a Vision Transformer of either layout.
    """
    arrays = _load_arrays(path)
    prefix = next(
        (p for p in ("", "params/", "opt/target/") if f"{p}embedding/kernel" in arrays), None
    )
    if prefix is None:
        raise RefusedInput(
            f"{path} is not a Vision Transformer in one of the authors' two layouts: it has no "
            "embedding/kernel or params/embedding/kernel"
        )
    reader = _Reader({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
    try:
        state_dict = _convert(reader)
        heads = reader.shape(f"{_block_names(reader, 0)['attention']}/query/kernel")[1]
    except (KeyError, ValueError, IndexError) as error:
        raise RefusedInput(f"{path} lacks part of a Vision Transformer: {error}") from error
    architecture, assumptions = infer_architecture(
        state_dict, str(path), heads=heads, pool="token" if "cls_token" in state_dict else "mean"
    )
    left_out = {n for n in arrays if not n.startswith(prefix)} | {prefix + n for n in reader.left}
    return Weights(
        state_dict=state_dict,
        card=None,
        source=str(path),
        architecture=architecture,
        assumptions=assumptions,
        left_out=tuple(sorted(left_out)),
    )


def _load_arrays(path: Path) -> Arrays:
    try:
        # allow_pickle stays off: an array of objects would run code when it is read
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise RefusedInput(f"{path} is a single array, not an .npz of named arrays")
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, RefusedInput):
            raise
        raise RefusedInput(
            f"{path} cannot be read as an .npz of plain arrays ({error}); "
            "if it was downloaded, download it again"
        ) from error


def _convert(reader: _Reader) -> StateDict:
    state: StateDict = {
        "patch_embed.proj.weight": reader.take("embedding/kernel").permute(3, 2, 0, 1),
        "patch_embed.proj.bias": reader.take("embedding/bias"),
    }
    if "cls" in reader:
        state["cls_token"] = reader.take("cls")
    state["pos_embed"] = _position_embedding(reader)
    depth = 0
    while f"Transformer/encoderblock_{depth}/LayerNorm_0/scale" in reader:
        state |= _convert_block(reader, depth)
        depth += 1
    state |= _convert_norm(reader, "Transformer/encoder_norm", "norm")
    if "pre_logits/kernel" in reader:
        state |= _convert_dense(reader, "pre_logits", "pre_logits.fc")
    if "head/kernel" in reader:
        state |= _convert_dense(reader, "head", "head")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _position_embedding(reader: _Reader) -> torch.Tensor:
    """Shape (1, tokens, D), with a position for the class token where there is one."""
    older = "Transformer/posembed_input/pos_embedding"
    positions = reader.take(older if older in reader else "pos_embedding")
    covers_only_patches = math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]
    if "cls" in reader and covers_only_patches:
        # The class token joins after positions are added, which is the same as adding 0 to it.
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return positions


def _block_names(reader: _Reader, index: int) -> Mapping[str, str]:
    """Names of a block's parts: numbered in order of use (older), or by kind (newer)."""
    block = f"Transformer/encoderblock_{index}"
    is_older = f"{block}/LayerNorm_2/scale" in reader
    numbers = (0, 1, 2, 3) if is_older else (0, 0, 1, 0)
    kinds = ("LayerNorm", "MultiHeadDotProductAttention", "LayerNorm", "MlpBlock")
    parts = [f"{block}/{kind}_{number}" for kind, number in zip(kinds, numbers, strict=True)]
    return dict(zip(("norm1", "attention", "norm2", "mlp"), parts, strict=True))


def _convert_block(reader: _Reader, index: int) -> StateDict:
    names, ours = _block_names(reader, index), f"blocks.{index}"
    attention = names["attention"]
    state = _convert_norm(reader, names["norm1"], f"{ours}.norm1")
    state |= _convert_norm(reader, names["norm2"], f"{ours}.norm2")
    # (D, heads, D / heads) each, stacked in the order that timm splits its qkv
    kernels = [reader.take(f"{attention}/{part}/kernel") for part in ("query", "key", "value")]
    biases = [reader.take(f"{attention}/{part}/bias") for part in ("query", "key", "value")]
    state[f"{ours}.attn.qkv.weight"] = torch.cat([k.flatten(1).T for k in kernels])
    state[f"{ours}.attn.qkv.bias"] = torch.cat([b.flatten() for b in biases])
    state[f"{ours}.attn.proj.weight"] = reader.take(f"{attention}/out/kernel").flatten(0, 1).T
    state[f"{ours}.attn.proj.bias"] = reader.take(f"{attention}/out/bias")
    for number in (0, 1):
        state |= _convert_dense(
            reader, f"{names['mlp']}/Dense_{number}", f"{ours}.mlp.fc{number + 1}"
        )
    return state


def _convert_norm(reader: _Reader, theirs: str, ours: str) -> StateDict:
    scale, bias = reader.take(f"{theirs}/scale"), reader.take(f"{theirs}/bias")
    return {f"{ours}.weight": scale, f"{ours}.bias": bias}


def _convert_dense(reader: _Reader, theirs: str, ours: str) -> StateDict:
    kernel, bias = reader.take(f"{theirs}/kernel"), reader.take(f"{theirs}/bias")
    return {f"{ours}.weight": kernel.T, f"{ours}.bias": bias}
