"""Weights files: what vitrain writes, and everything it reads.

This is the public surface; the neighbours `weights_card`, `fitting`, `official_npz` and
`foreign_weights` hold the parts. Formats and examples: docs/models.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from configs.durable_files import flush_to_disk
from configs.errors import RefusedInput
from models.fitting import LoadReport, load_into, model_from_weights
from models.foreign_weights import plain_state_dict, read_pickled, read_timm
from models.inspect_weights import infer_architecture
from models.official_npz import read_official_npz
from models.weights_card import StateDict, Weights, WeightsCard, read_card

__all__ = [
    "LoadReport",
    "Weights",
    "WeightsCard",
    "load_into",
    "load_weights",
    "model_from_weights",
    "save_weights",
    "weights_sha256",
]

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"

_READERS = {
    ".npz": read_official_npz,
    ".pth": read_pickled,
    ".pt": read_pickled,
    ".bin": read_pickled,
}


def weights_sha256(state_dict: StateDict) -> str:
    """Digest of weights: of each tensor's name, type, shape and fp32 bytes, in order of name.

    It does not depend on the file format, the order of the tensors, or the device they are on.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().numpy().data)
    return digest.hexdigest()


def save_weights(folder: Path, state_dict: StateDict, card: WeightsCard) -> Path:
    """Write model.safetensors and model.json into a folder that appears only once it is whole.

    Args:
        folder: Where; a folder of earlier weights is replaced.
        state_dict: Tensors by timm's names; written as fp32.
        card: What they are.

    Returns:
        The folder.
    """
    plain = {n: t.detach().to("cpu", torch.float32).contiguous() for n, t in state_dict.items()}
    temporary = folder.with_name(f".{folder.name}.new")
    replaced = folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    safetensors.torch.save_file(plain, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
    (temporary / CARD_FILE).write_text(card.to_json(weights_sha256(plain)), encoding="utf-8")
    for path in (temporary / WEIGHTS_FILE, temporary / CARD_FILE, temporary):
        flush_to_disk(path)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(temporary, folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def load_weights(reference: Path | str) -> Weights:
    """Read weights from wherever they are.

    Args:
        reference: A run folder (its export), a folder with model.safetensors, a .safetensors file,
            one of the authors' .npz, a timm .pth, .pt or .bin, or "timm:NAME".

    Raises:
        RefusedInput: Nothing there, damaged, unsafe to read, or not a Vision Transformer.
    """
    text = str(reference)
    if text.startswith("timm:"):
        return read_timm(text.removeprefix("timm:"))
    path = Path(reference).expanduser()
    if path.is_dir():
        path = _weights_file_in(path)
    if not path.is_file():
        raise RefusedInput(
            f"weights {text}: no such file or folder; give a run folder, a .safetensors, .npz or "
            ".pth file, or timm:NAME"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in _READERS:
        known = ", ".join([".safetensors", *_READERS])
        raise RefusedInput(f"weights {path}: unknown kind of file '{path.suffix}' (known: {known})")
    return _READERS[path.suffix](path)


def _weights_file_in(folder: Path) -> Path:
    for candidate in (folder / "export" / WEIGHTS_FILE, folder / WEIGHTS_FILE):
        if candidate.is_file():
            return candidate
    if (folder / "checkpoints").is_dir():
        raise RefusedInput(
            f"run folder {folder} has no exported weights yet (export/{WEIGHTS_FILE}); they are "
            "written when the run finishes"
        )
    raise RefusedInput(f"folder {folder} holds no {WEIGHTS_FILE}")


def _read_safetensors(path: Path) -> Weights:
    try:
        content = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RefusedInput(
            f"{path} cannot be read as safetensors ({error}); export or copy it again"
        ) from error
    card_file = path.with_suffix(".json")
    if not card_file.is_file():
        state_dict = plain_state_dict(content, path)
        architecture, assumptions = infer_architecture(state_dict, str(path))
        return Weights(state_dict, None, str(path), architecture, assumptions=assumptions)
    card, expected = read_card(card_file)
    if weights_sha256(content) != expected:
        raise RefusedInput(
            f"{path} is damaged, or not the file that {card_file.name} describes "
            "(its digest differs); export or copy both again"
        )
    return Weights(content, card, str(path), card.architecture, mean=card.mean, std=card.std)
