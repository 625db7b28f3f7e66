"""What a run is: every option of both stages; the groups they share are in `configs.groups`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, field_validator, model_validator

from configs.data_groups import AugmentConfig, DataConfig, LoaderConfig
from configs.deepspeed_options import check_deepspeed_block
from configs.evaluation import TaskName
from configs.few_shot import FewShotConfig
from configs.groups import (
    BatchConfig,
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    ZeroConfig,
)
from configs.health import HealthConfig
from configs.profile_steps import profile_steps
from configs.schedule import ScheduleConfig
from configs.section import CountFromZero, Fraction, PositiveFloat, PositiveInt, Section
from configs.subset import SubsetConfig

ResumeChoice = Literal["auto", "never", "must"]


class PretrainConfig(Section):
    """Pretraining a Vision Transformer on WebDataset shards with DeepSpeed.

    Instead of training, `--inspect RUN` lists a run folder's status and checkpoints, and
    `--export-only RUN` writes weights out of its newest checkpoint; `--validate`, beside the other
    options, tries everything in two steps and says what the run would need (`--gpus N --gpu KIND`:
    on which GPUs).
    """

    stage: tyro.conf.Suppress[Literal["pretrain"]] = Field(
        "pretrain", description="Which stage a YAML file is for."
    )
    run_dir: Path | None = Field(
        None,
        description=(
            "Folder of everything the run writes; None means runs/<name of the config file>."
        ),
    )
    resume: ResumeChoice = Field(
        "auto",
        description=(
            "auto: go on if the run folder has a checkpoint; never: refuse a used folder; must: "
            "refuse an unused one."
        ),
    )
    seed: CountFromZero = Field(0, description="Seed of weights, order, augmentation and dropout.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description=(
            "Compute precision; auto means bf16 where the hardware multiplies it, else fp32. fp16 "
            "scales the loss, for GPUs without bf16. Master weights and accumulated gradients are "
            "fp32."
        ),
    )
    compile: bool = Field(
        False,
        description=(
            "Compile the model with torch.compile: minutes at the start, faster steps on a GPU. "
            "Needs a C++ compiler."
        ),
    )
    deterministic: bool = Field(
        False,
        description="Deterministic kernels on a GPU, at a cost in speed; CPU runs always are.",
    )
    profile: str | None = Field(
        None,
        description=(
            "Steps FIRST:LAST to profile, as 50:55: from step 50 to step 55, five of them. Traces "
            "go to profile/ in the run folder."
        ),
    )
    profile_ranks: tuple[CountFromZero, ...] = Field((0,), description="Ranks that are profiled.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    zero: ZeroConfig = Field(default_factory=ZeroConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    few_shot: FewShotConfig = Field(default_factory=FewShotConfig)
    health: HealthConfig = Field(default_factory=HealthConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    deepspeed: tyro.conf.Suppress[dict[str, Any]] = Field(
        default_factory=dict, description="Further DeepSpeed options, merged last; only in YAML."
    )

    @field_validator("deepspeed")
    @classmethod
    def _decides_nothing_of_ours(cls, block: dict[str, Any]) -> dict[str, Any]:
        check_deepspeed_block(block)
        return block

    @field_validator("profile", mode="before")
    @classmethod
    def _profiles_a_step(cls, profile: object) -> object:
        if profile is not None:
            # YAML takes 50:55 without quotes for a number to the base of 60.
            profile_steps(profile if isinstance(profile, str) else f"{profile} (in YAML, quote it)")
        return profile


class FinetuneConfig(Section):
    """Transferring pretrained weights to a smaller task, at higher resolution, with Accelerate."""

    stage: tyro.conf.Suppress[Literal["finetune"]] = Field(
        "finetune", description="Which stage a YAML file is for."
    )
    task: TaskName = Field(
        "cifar10",
        description="Row of the task table: classes, official splits, validation part.",
    )
    pretrained: str = Field(
        "scratch",
        description=(
            "Run folder, weights file (.safetensors, .npz, .pth), runs:/ID, models:/NAME@ALIAS, "
            "timm:NAME, or scratch."
        ),
    )
    resolution: PositiveInt | None = Field(
        None,
        description="Side of the square input image, in pixels; None keeps the pretrained one.",
    )
    data_dir: Path = Field(
        Path("datasets"),
        description=(
            "Where the task's files lie or are downloaded to; shards built from them are kept "
            "there."
        ),
    )
    test_real_labels: Path | None = Field(
        None,
        description=(
            "JSON list with a list of right classes for each test image, such as the ReaL labels "
            "of ImageNet-1k; gives test/real_top1."
        ),
    )
    images_per_class: PositiveInt | None = Field(
        None,
        description=(
            "Train on this many images of each class only (seeded choice); None takes all. The "
            "same as data.images-per-class."
        ),
    )
    position_embedding: Literal["linear", "bicubic"] = Field(
        "linear",
        description=(
            "Resizing of position embeddings: the authors' corner-aligned linear zoom, or timm's "
            "bicubic."
        ),
    )
    run_dir: Path | None = Field(
        None,
        description=(
            "Folder of everything the run writes; None means "
            "runs/finetune-<task>-<weights>-seed<seed>."
        ),
    )
    resume: ResumeChoice = Field(
        "auto",
        description=(
            "auto: go on if the run folder has a checkpoint; never: refuse a used folder; must: "
            "refuse an unused one."
        ),
    )
    seed: CountFromZero = Field(
        0, description="Seed of the new head, order, augmentation and choice of images."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Compute precision; auto means bf16 where the hardware multiplies it."
    )
    deterministic: bool = Field(
        False,
        description="Deterministic kernels on a GPU, at a cost in speed; CPU runs always are.",
    )
    steps: PositiveInt = Field(10_000, description="Optimizer steps of each learning rate tried.")
    warmup_steps: CountFromZero = Field(
        500,
        description=(
            "Steps of linear warmup from 0; scaled down, with a notice, when the run is shorter."
        ),
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (0.003,),
        min_length=1,
        description=(
            "Peak learning rates to try; the best on the validation part is scored on the test "
            "set, once."
        ),
    )
    clip_norm: PositiveFloat | None = Field(
        1.0,
        description=(
            "Global gradient norm above which gradients are scaled down; None switches it off."
        ),
    )
    momentum: Fraction = Field(0.9, description="Momentum of SGD.")
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description=(
            "Share of the training images held out to choose a learning rate; None takes the "
            "task's."
        ),
    )
    eval_resize_px: PositiveInt | None = Field(
        None,
        description=(
            "Shorter side before the centre crop of evaluation, in pixels; None means 7/6 of the "
            "resolution."
        ),
    )
    max_broken_fraction: Fraction = Field(
        0.001, description="Unreadable images tolerated, as a fraction of those (at least 10)."
    )
    model: ModelConfig = Field(
        default_factory=ModelConfig,
        description=(
            "The architecture to start from random weights, when pretrained is scratch; "
            "model.checkpoint-blocks always."
        ),
    )
    data: SubsetConfig = Field(default_factory=SubsetConfig)
    augment: AugmentConfig = Field(default_factory=lambda: AugmentConfig(crop="resize"))
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    batch: BatchConfig = Field(default_factory=lambda: BatchConfig(global_images=512))
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _one_amount(self) -> FinetuneConfig:
        amounts = {
            "data.images_per_class": self.data.images_per_class,
            "data.fraction": self.data.fraction,
        }
        for name, amount in amounts.items():
            if self.images_per_class is not None and amount is not None:
                raise ValueError(
                    f"images_per_class = {self.images_per_class} and {name} = {amount} are both "
                    "set; give one (null removes the other)"
                )
        return self

    @property
    def subset(self) -> SubsetConfig:
        """The `data` group, into which `images_per_class` is taken."""
        if self.images_per_class is None:
            return self.data
        return self.data.model_copy(update={"images_per_class": self.images_per_class})
