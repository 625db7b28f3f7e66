"""Options of the commands that look at weights without training them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from configs.data_groups import LoaderConfig
from configs.few_shot import ProbeConfig
from configs.groups import TrackingConfig
from configs.section import Fraction, PositiveInt, Section
from configs.subset import ClassName

TaskName = Literal["cifar10", "cifar100", "pets", "flowers", "digits", "image-folder", "shards"]


class ScoringConfig(Section):
    """What every such command needs: weights, images, and how they meet."""

    weights: str = Field(
        "",
        description=(
            "Run folder, weights file (.safetensors, .npz, .pth), runs:/ID, models:/NAME@ALIAS or "
            "timm:NAME. Required."
        ),
    )
    task: TaskName = Field("cifar10", description="Row of the task table: which images.")
    data_dir: Path = Field(
        Path("datasets"),
        description=(
            "Where the task's files lie or are downloaded to; shards built from them are kept "
            "there."
        ),
    )
    resolution: PositiveInt | None = Field(
        None, description="Side of the square input image, in pixels; None keeps the weights'."
    )
    position_embedding: Literal["linear", "bicubic"] = Field(
        "linear", description="Resizing of position embeddings where the resolution changes."
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="Resizing of images; what the weights were trained with."
    )
    antialias: bool = Field(True, description="Average over all pixels when images get smaller.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Compute precision; auto means bf16 where the hardware multiplies it."
    )
    batch_images: PositiveInt = Field(64, description="Images of one forward pass of one process.")
    max_broken_fraction: Fraction = Field(
        0.001, description="Unreadable images tolerated, as a fraction of those (at least 10)."
    )
    run_dir: Path | None = Field(
        None, description="Folder that keeps the result; MLflow gets it too. None keeps nothing."
    )
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = Field(
        False, description="Print the result as JSON on standard output, and all else elsewhere."
    )
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)


class EvaluateConfig(ScoringConfig):
    """Scoring weights, head and all, on every image of a test set."""

    shards: str | None = Field(
        None, description="Folder or URL of the shards to score, instead of a task's test set."
    )
    real_labels: Path | None = Field(
        None,
        description=(
            "JSON list with a list of right classes for each image, such as the ReaL labels of "
            "ImageNet-1k."
        ),
    )
    eval_resize_px: PositiveInt | None = Field(
        None,
        description=(
            "Shorter side before the centre crop, in pixels; None means 7/6 of the input for "
            "finetuned weights, 8/7 for others, as their own runs evaluate."
        ),
    )
    loss_kind: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="Of the loss, for images that have one class each."
    )
    label_map: Path | None = Field(
        None, description="YAML or JSON file of `class: new class` lines, as in training."
    )
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = Field(
        None, description="Classes to use, as in training; None takes all."
    )


class FewShotRunConfig(ScoringConfig, ProbeConfig):
    """Few-shot linear probes of weights on a task (docs/evaluation.md)."""

    run_dir: Path | None = Field(
        None,
        description=(
            "Folder that keeps the result; MLflow gets it too. None means "
            "runs/few-shot-<task>-<weights>."
        ),
    )
