"""Weights that vitrain did not write: timm's pickled checkpoints and its hub."""

from __future__ import annotations

import difflib
import os
import pickle
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from configs.errors import RefusedInput
from models.inspect_weights import infer_architecture
from models.weights_card import StateDict, Weights, WeightsCard

# Where training scripts put the model inside their checkpoint; averaged weights come first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_pickled(path: Path) -> Weights:
    """Read a .pth, .pt or .bin state dict, without running any code in it.

    Raises:
        RefusedInput: Damaged, needs code to be run, or is not a Vision Transformer.
    """
    state_dict = plain_state_dict(_load_without_code(path), path)
    architecture, assumptions = infer_architecture(state_dict, str(path))
    return Weights(
        state_dict=state_dict,
        card=None,
        source=str(path),
        architecture=architecture,
        assumptions=assumptions,
    )


def plain_state_dict(content: Any, path: Path) -> StateDict:
    """Tensors by name from whatever a checkpoint file holds, fp32, without a wrapper's prefix."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise RefusedInput(f"{path} holds a {type(content).__name__}, not weights by name")
    return {
        str(name).removeprefix("module."): tensor.float().contiguous()
        for name, tensor in content.items()
        if isinstance(tensor, torch.Tensor)
    }


def _load_without_code(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        why = f"loading it would run {needs[1]}" if needs else "it is damaged, or not a checkpoint"
        raise RefusedInput(
            f"{path} cannot be read as plain weights: {why}; vitrain never runs code from a file. "
            "Save the state dict alone (torch.save(model.state_dict(), ...)) or a .safetensors, or "
            "copy the file again"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RefusedInput(
            f"{path} cannot be read as a PyTorch checkpoint ({_first_line(error)}); "
            "if it was downloaded or copied, do that again"
        ) from error


def read_timm(name: str) -> Weights:
    """Fetch pretrained weights through timm, from its hub or the local cache.

    Raises:
        RefusedInput: No such model, not a plain Vision Transformer, or it cannot be fetched.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("*vit*", pretrained=True), n=3)
        hint = f"; perhaps you meant {' or '.join(near)}" if near else ""
        raise RefusedInput(f"timm:{name}: timm {timm.__version__} knows no such model{hint}")
    _go_offline_without_network()
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises many kinds, none of them promised
        raise RefusedInput(
            f"timm:{name} cannot be fetched ({_first_line(error)}); with a network, run "
            f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` once and "
            "copy the cache (HF_HOME), or download its model.safetensors and give that file"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise RefusedInput(f"timm:{name} is a {type(model).__name__}, not a Vision Transformer")
    return weights_of_timm_model(model, f"timm:{name}")


def weights_of_timm_model(model: VisionTransformer, source: str) -> Weights:
    """Weights and card of a timm model, which knows its heads, grid and normalisation.

    Raises:
        RefusedInput: A relative of the plain Vision Transformer that vitrain does not build.
    """
    state_dict = {n: t.detach().float().contiguous() for n, t in model.state_dict().items()}
    if model.no_embed_class and model.cls_token is not None and model.pos_embed is not None:
        # The class token joins after positions are added, which is the same as adding 0 to it.
        zero = torch.zeros_like(state_dict["pos_embed"][:, :1])
        state_dict["pos_embed"] = torch.cat([zero, state_dict["pos_embed"]], dim=1)
    first_block: Any = model.blocks[0]
    settings: Any = model.pretrained_cfg
    _check_computes_the_same(model, first_block, source)
    architecture, _ = infer_architecture(
        state_dict,
        source,
        heads=first_block.attn.num_heads,
        grid=tuple(model.patch_embed.grid_size),
        pool="token" if model.global_pool == "token" else "mean",
    )
    card = WeightsCard(architecture, mean=tuple(settings["mean"]), std=tuple(settings["std"]))
    return Weights(
        state_dict=state_dict,
        card=card,
        source=source,
        architecture=architecture,
        mean=card.mean,
        std=card.std,
    )


def _check_computes_the_same(model: VisionTransformer, first_block: Any, source: str) -> None:
    """Refuse what differs in ways that no tensor shows."""
    activation = first_block.mlp.act
    if model.global_pool not in ("token", "avg") or model.pool_include_prefix:
        what = f"pools its tokens by {model.global_pool}"
    elif not isinstance(activation, torch.nn.GELU) or activation.approximate != "none":
        what = f"uses {activation} between its MLPs' layers"
    else:
        return
    raise RefusedInput(
        f"{source} is a relative of the plain Vision Transformer that vitrain does not build: "
        f"it {what}"
    )


def _go_offline_without_network() -> None:
    """Where the hub's address cannot even be resolved, read the local cache only.

    The hub's client would try every file six times first, which takes most of a minute.
    """
    if {"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} & set(os.environ):
        return  # then it is the proxy that resolves addresses
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
