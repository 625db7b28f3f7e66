"""Options of `python -m launch.plan`: what is planned, and every assumption with its source."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import PretrainConfig


def _assumed(default: float, meaning: str, source: str, *, kind: str = "positive") -> Any:
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "source": source, "kind": kind}
    )


@dataclass(frozen=True)
class Assumptions:
    """What the planner cannot read from config, model and table; each is an option of its own."""

    mfu: float = _assumed(
        0.40,
        "share of the GPU's peak that forward and backward passes use, everything included",
        "a goal for ViT-B and larger in bf16; measure yours: throughput/mfu of a short run",
        kind="share",
    )
    reserve_gib: float = _assumed(
        2.0,
        "memory outside PyTorch: CUDA context, NCCL, cuBLAS workspace",
        "usual size",
        kind="not negative",
    )
    fragmentation: float = _assumed(
        0.05,
        "share of the memory lost between blocks of PyTorch's allocator",
        "usual size",
        kind="share lost",
    )
    good_micro_images: float = _assumed(
        32, "micro batch from which on a larger one is hardly faster", "rule of thumb"
    )
    decode_images_per_core: float = _assumed(
        980,
        "images a second that one core decodes, crops and resizes to 224 px",
        "docs/benchmarks/loader.md: 1.0 ms of an AMD EPYC core, 500 x 375 px",
    )
    storage_gb_per_second: float = _assumed(
        2.0, "rate at which all ranks together write a checkpoint, in GB/s", "measure yours"
    )
    copy_gb_per_second: float = _assumed(
        12.0,
        "rate at which each GPU copies its share of a checkpoint to host memory, in GB/s",
        "about half of what PCIe 4.0 x16 gives with pinned memory",
    )
    power_fraction: float = _assumed(
        0.85,
        "share of its power limit that a GPU draws while it trains",
        "usual size",
        kind="share",
    )
    host_watts_per_gpu: float = _assumed(
        300, "processors, memory, fans and network of a node, per GPU, in W", "usual size"
    )
    pue: float = _assumed(
        1.56,
        "power usage effectiveness: the building's energy over the machines'",
        "mean of the Uptime Institute's survey of 2024",
    )
    grid_kg_per_kwh: float = _assumed(
        0.47,
        "CO2 of a kilowatt-hour from the grid, in kg",
        "world's mean of 2024, Ember's Global Electricity Review 2025 (recalled)",
    )


@dataclass(frozen=True)
class PlanOptions:
    """The command line, parsed; None means: from the table or the shards."""

    config: Path
    gpus: int
    gpu: str
    gpus_per_node: int
    gpu_memory_gib: float | None
    peak_tflops: float | None
    gpu_watts: float | None
    images: int | None
    classes: int | None
    bytes_per_image: float | None
    json: bool
    assumptions: Assumptions
    config_options: tuple[str, ...]


def parse_options(argv: Sequence[str]) -> PlanOptions:
    """Read the command line; words that are not the planner's are left for the config.

    A wrong value ends the process with exit code 2 and a sentence.
    """
    parser = _parser()
    found, rest = parser.parse_known_args(list(argv))
    refuse_unknown(parser, rest)
    names = [field.name for field in dataclasses.fields(Assumptions)]
    values = vars(found)
    assumptions = Assumptions(**{name: values.pop(name) for name in names})
    if values["gpus_per_node"] is None:
        values["gpus_per_node"] = min(8, values["gpus"])
    if values["gpus"] % values["gpus_per_node"]:
        parser.error(
            f"argument --gpus: {values['gpus']} GPUs are not whole nodes of "
            f"{values['gpus_per_node']}; change --gpus or --gpus-per-node"
        )
    return PlanOptions(**values, assumptions=assumptions, config_options=tuple(rest))


def refuse_unknown(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Refuse misspelt options of a parser; the config's are checked where it is read."""
    ours = [word for action in parser._actions for word in action.option_strings]
    for word in words:
        name = word.partition("=")[0]
        is_config = "." in name or name[2:].replace("-", "_") in PretrainConfig.model_fields
        if name.startswith("--") and not is_config:
            near = difflib.get_close_matches(name, ours, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists the options"
            parser.error(f"unknown option {name}{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan",
        description="Say, without a GPU, what a pretraining run needs: memory by ZeRO stage, "
        "largest micro batch, time, data rate, checkpoints, energy.",
        epilog="Every option of launch/pretrain.py is taken too, as in --model.size l --zero.stage "
        "3. docs/planning.md explains the output.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="pretraining config (YAML)")
    add(
        "--gpus", type=count_from_one, required=True, metavar="N", help="GPUs of all nodes together"
    )
    add("--gpu", required=True, metavar="NAME", help="their kind, e.g. h100-80gb, a100-40gb, l40s")
    add("--gpus-per-node", type=count_from_one, metavar="N", help="default 8, or --gpus if fewer")
    add("--gpu-memory-gib", type=_positive, metavar="GIB", help="instead of the table's")
    add("--peak-tflops", type=_positive, metavar="T", help="instead of the table's")
    add("--gpu-watts", type=_positive, metavar="W", help="instead of the table's")
    add(
        "--images", type=count_from_one, metavar="N", help="training images, instead of the shards'"
    )
    add("--classes", type=count_from_one, metavar="N", help="classes, instead of the shards'")
    add("--bytes-per-image", type=_positive, metavar="B", help="instead of the shards' mean")
    add("--json", action="store_true", help="print one JSON object instead of text")
    assumed = parser.add_argument_group("assumptions")
    for field in dataclasses.fields(Assumptions):
        option = "--" + field.name.replace("_", "-")
        kind = _KINDS[field.metadata["kind"]]
        help_text = f"{field.metadata['meaning']} (default {field.default})".replace("%", "%%")
        assumed.add_argument(option, type=kind, default=field.default, metavar="X", help=help_text)
    return parser


def count_from_one(text: str) -> int:
    """The whole number of an option, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: give a number")
    return value


def _positive(text: str) -> float:
    if _number(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return float(text)


def _not_negative(text: str) -> float:
    if _number(text) < 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 0")
    return float(text)


def _share(text: str) -> float:
    if not 0 < _number(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a share above 0 and at most 1")
    return float(text)


def _share_lost(text: str) -> float:
    if not 0 <= _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a share of at least 0 and below 1")
    return float(text)


_KINDS = {
    "positive": _positive,
    "not negative": _not_negative,
    "share": _share,
    "share lost": _share_lost,
}
