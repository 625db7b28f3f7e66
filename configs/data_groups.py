"""The groups of options about images: which, how they are read, and how they are augmented.

The rules of `configs.groups` hold here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.augreg import AUGREG_LEVELS, AugRegName
from configs.section import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)
from configs.subset import SubsetConfig


class AugmentConfig(Section):
    """Random changes to training images, seeded by (seed, position): alike at any world size."""

    level: AugRegName = Field(
        "none",
        description=(
            "Mixup and RandAugment together, by AugReg's names (docs/augmentation.md); light1's "
            "RandAugment of magnitude 0 is not nothing."
        ),
    )
    mixup: NonNegativeFloat | None = Field(
        None,
        description=(
            "Mixup: a of Beta(a, a), from which each step's share is drawn; 0 mixes nothing, None "
            "takes the level's."
        ),
    )
    randaugment_layers: Annotated[int, Field(ge=0, le=10)] | None = Field(
        None,
        description="RandAugment: operations on each image; 0 for none, None takes the level's.",
    )
    randaugment_magnitude: Annotated[float, Field(ge=0.0, le=30.0)] | None = Field(
        None,
        description="RandAugment: strength of each operation, 0 to 30; None takes the level's.",
    )
    crop: Literal["area", "resize", "none"] = Field(
        "area",
        description=(
            "area: random resized crop; resize: resize the shorter side to augment.resize-px, "
            "then a random crop; none: the evaluation transform."
        ),
    )
    crop_area_min: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.05, description="Smallest crop, as a fraction of the image's area."
    )
    crop_area_max: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Largest crop, as a fraction of the image's area."
    )
    crop_ratio_max: Annotated[float, Field(ge=1.0)] = Field(
        4 / 3, description="Largest width / height of a crop; the smallest is its inverse."
    )
    resize_px: PositiveInt | None = Field(
        None,
        description=(
            "Shorter side before the crop when augment.crop is 'resize', in pixels; None means "
            "8/7 of the input (7/6 when finetuning)."
        ),
    )
    flip: bool = Field(True, description="Mirror left and right with probability one half.")
    interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic",
        description="Resizing, of evaluation images too: bicubic is sharper, bilinear faster.",
    )
    antialias: bool = Field(
        True,
        description=(
            "Average over all pixels when an image is made smaller; without, fine patterns turn "
            "into false ones, but resizing is faster (what the authors' code does)."
        ),
    )
    dct_scaling: bool = Field(
        True,
        description=(
            "Decode large JPEG crops at 1/2, 1/4 or 1/8 where that still covers the input: faster, "
            "pixels differ slightly."
        ),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AugmentConfig:
        if self.crop_area_min > self.crop_area_max:
            raise ValueError(
                f"augment.crop_area_min = {self.crop_area_min} is above "
                f"augment.crop_area_max = {self.crop_area_max}; swap them"
            )
        return self

    @model_validator(mode="after")
    def _randaugment_is_whole(self) -> AugmentConfig:
        layers, magnitude = self._layers(), self._magnitude()
        if layers and magnitude is None:
            raise ValueError(
                f"augment.randaugment_layers = {layers} without a magnitude: give "
                "augment.randaugment_magnitude too, or an augment.level that has one"
            )
        if not layers and self.randaugment_magnitude is not None:
            raise ValueError(
                f"augment.randaugment_magnitude = {self.randaugment_magnitude} with 0 layers does "
                "nothing: give augment.randaugment_layers too, or an augment.level that has them"
            )
        return self

    @property
    def mixup_alpha(self) -> float:
        """The a of Beta(a, a) that holds; 0 mixes nothing."""
        return AUGREG_LEVELS[self.level].mixup if self.mixup is None else self.mixup

    @property
    def randaugment(self) -> tuple[int, float] | None:
        """Layers and magnitude that hold, or None for no RandAugment."""
        layers, magnitude = self._layers(), self._magnitude()
        return (layers, magnitude) if layers and magnitude is not None else None

    def _layers(self) -> int:
        if self.randaugment_layers is not None:
            return self.randaugment_layers
        return AUGREG_LEVELS[self.level].randaugment_layers

    def _magnitude(self) -> float | None:
        if self.randaugment_magnitude is not None:
            return self.randaugment_magnitude
        return AUGREG_LEVELS[self.level].randaugment_magnitude


class LoaderConfig(Section):
    """How bytes become batches; does not change which images are seen or how they look."""

    threads: PositiveInt | None = Field(
        None,
        description=(
            "Decoding threads of each rank; None shares the machine's cores among its ranks."
        ),
    )
    read_ahead_batches: PositiveInt = Field(
        4, description="Micro batches prepared in advance by each rank."
    )
    max_image_pixels: PositiveInt = Field(
        178_956_970, description="Larger images count as broken (decompression bombs), in pixels."
    )


class DataConfig(SubsetConfig):
    """What is trained on and in which order."""

    train: str | None = Field(
        None,
        description=(
            "Folder or URL of training shards (manifest.json and index.parquet). Required."
        ),
    )
    val: str | None = Field(
        None, description="Folder or URL of validation shards; None evaluates nothing."
    )
    cache_dir: Path | None = Field(
        None,
        description=(
            "Folder on a local disk that keeps remote shards for all ranks of a node; None reads "
            "each remote image straight from its server."
        ),
    )
    cache_bytes: PositiveInt = Field(
        100_000_000_000, description="Bound of the shards in data.cache-dir, in bytes."
    )
    retry_seconds: PositiveFloat = Field(
        300.0,
        description="A remote read is repeated until it made no progress for so many seconds.",
    )
    stall_seconds: PositiveFloat = Field(
        30.0,
        description=(
            "A connection, or the next MiB, that takes more seconds than this counts as failed."
        ),
    )
    absolute_shards: bool = Field(
        False,
        description=(
            "Let manifests name shards outside their own folder or URL, by absolute path or URL."
        ),
    )
    allow_commands: bool = Field(
        False, description="Let manifests name pipe: commands, which a shell runs as you."
    )
    val_real_labels: Path | None = Field(
        None,
        description=(
            "JSON list with a list of right classes for each validation image, such as the "
            "ReaL labels of ImageNet-1k; gives validation/real_top1."
        ),
    )
    streams: PositiveInt = Field(
        768, description="Canonical streams of the sample order; part of the order's identity."
    )
    decode: Literal["cpu", "cuda"] = Field(
        "cpu",
        description=(
            "Where JPEG files are decoded for training: cuda uses the GPU's decoder, for machines "
            "with few cores. Pixels differ slightly between the two."
        ),
    )
    max_broken_fraction: Fraction = Field(
        0.001,
        description=(
            "Unreadable images tolerated, as a fraction of the dataset (at least 10 images)."
        ),
    )
    eval_resize_px: PositiveInt | None = Field(
        None,
        description=(
            "Shorter side before the centre crop of evaluation, in pixels; None means 8/7 of "
            "model.image-px."
        ),
    )
