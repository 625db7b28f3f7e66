"""What follows from the options alone, before torch: files, names, what a run keeps for life."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.batch_split import check_mixup, split_batch
from configs.errors import RefusedInput
from configs.load import flatten
from configs.schema import FinetuneConfig
from finetune.tasks import TASKS

Value = str | int | float | bool

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG_FOLDER = REPOSITORY / "configs" / "finetune"

# Options (or groups) that do not change what is learned from which images, so a run that goes on
# may be given others. The weights and the data are compared by digest, not by where they lie.
MAY_CHANGE = (
    "stage",
    "run_dir",
    "resume",
    "pretrained",
    "data_dir",
    "test_real_labels",
    "deterministic",
    "max_broken_fraction",
    "loader.",
    "model.checkpoint_blocks",
    "batch.micro_images",
    "batch.accumulation_steps",
    "checkpoint.",
    "evaluation.",
    "logging.",
    "tracking.",
)

_NAMES_OF_EVERY_EXPORT = {"", "export", "model", "model.safetensors"}


def task_config_file(argv: Sequence[str]) -> Path | None:
    """The shipped config of the task that `argv` names (cifar10 unless it names one), if any."""
    task = FinetuneConfig.model_fields["task"].default
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        if argument == "--task":
            task = following
        elif argument.startswith("--task="):
            task = argument.removeprefix("--task=")
    file = CONFIG_FOLDER / f"{task}.yaml"
    return file if task in TASKS and file.is_file() else None


def with_run_dir(config: FinetuneConfig) -> FinetuneConfig:
    """The config with its run folder: runs/finetune-<task>-<weights>-seed<seed> by default."""
    if config.run_dir is not None:
        return config
    weights = short_name(config.pretrained)
    run_dir = Path("runs") / f"finetune-{config.task}-{weights}-seed{config.seed}"
    return config.model_copy(update={"run_dir": run_dir})


def short_name(reference: str) -> str:
    """What weights are called in the name of a run folder."""
    parts = re.split(r"[/:@]", reference)
    names = [part for part in parts if part not in _NAMES_OF_EVERY_EXPORT]
    weights = re.sub(r"[^\w.-]+", "-", names[-1] if names else "weights")
    return re.sub(r"\.(safetensors|npz|pth|pt)$", "", weights)


def check_options(config: FinetuneConfig, num_processes: int) -> None:
    """Refuse what can be seen to be impossible without loading anything.

    Raises:
        RefusedInput: Missing weights, a resolution that the patches do not divide, a batch that
            the processes do not divide, a learning rate given twice.
    """
    micro_images, _ = split_batch(config.batch, num_processes)
    check_mixup(config.augment, micro_images)
    if config.pretrained == "scratch":
        check_resolution(input_px(config), config.model.patch_px)
    else:
        refuse_missing_weights("--pretrained", config.pretrained, others=", timm:NAME, or scratch")
    if len(set(config.learning_rates)) < len(config.learning_rates):
        rates = " ".join(f"{rate:g}" for rate in config.learning_rates)
        raise RefusedInput(f"--learning-rates {rates}: one is given twice; give each once")


def refuse_missing_weights(option: str, reference: str, *, others: str) -> None:
    """Refuse a path that leads nowhere; names in MLflow or timm are looked up later.

    Raises:
        RefusedInput: With what may be given; `others` ends the list.
    """
    if not re.match(r"\w+:", reference) and not Path(reference).exists():
        raise RefusedInput(
            f"{option} {reference}: there is no such file or folder; give a run folder, a "
            f"weights file, runs:/ID, models:/NAME@ALIAS{others}"
        )


def check_resolution(resolution_px: int, patch_px: int) -> None:
    """Refuse a resolution that is not a multiple of the patch.

    Raises:
        RefusedInput: With the nearest sizes that are.
    """
    if resolution_px % patch_px:
        below = resolution_px // patch_px * patch_px
        nearest = " or ".join(str(px) for px in (below, below + patch_px) if px)
        raise RefusedInput(
            f"--resolution {resolution_px} is not a multiple of the model's patches of {patch_px} "
            f"pixels; the nearest are {nearest}"
        )


def input_px(config: FinetuneConfig) -> int:
    """Side of the input of a model that starts from scratch."""
    return config.resolution or config.model.image_px


def identity(config: FinetuneConfig) -> dict[str, Value]:
    """The options that a run keeps for life, under their dotted keys."""
    return {k: v for k, v in flatten(config).items() if not _may_change(k)}


def _may_change(key: str) -> bool:
    return any(key.startswith(k) if k.endswith(".") else key == k for k in MAY_CHANGE)


def refuse_differences(before: Mapping[str, Value], now: Mapping[str, Value], folder: Path) -> None:
    """Refuse to go on with a run that was started with something else.

    Raises:
        RefusedInput: Each difference by name, with both values.
    """
    # An option that is newer than the run had its default then.
    before = {**identity(FinetuneConfig()), **before}
    names = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if names:
        values = ((k, before.get(k, "none"), now.get(k, "none")) for k in names)
        told = "; ".join(f"{name} was {old}, now {new}" for name, old, new in values)
        raise RefusedInput(
            f"{folder} holds a run of other options: {told}. Give the same ones, or start another "
            "run with another --run-dir"
        )
