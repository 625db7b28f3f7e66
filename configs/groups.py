"""The groups of options that a run's configuration is made of: typed, frozen, checked when made.

`configs.schema` joins them into the two stages. A field's name is its YAML key, its command-line
option (dots between groups, dashes for underscores) and its MLflow parameter. "step" always means
optimizer step. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.model_sizes import SIZES
from configs.section import (
    CountFromZero,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)


class ModelConfig(Section):
    """The Vision Transformer."""

    size: Literal["ti", "s", "b", "l", "h"] = Field(
        "ti", description="Row of the size table (Ti, S, B, L, H)."
    )
    patch_px: PositiveInt = Field(16, description="Side of a square patch, in pixels.")
    image_px: PositiveInt = Field(
        224, description="Side of the square input image, in pixels; a multiple of model.patch-px."
    )
    width: PositiveInt | None = Field(None, description="Token width; None takes the size's.")
    depth: PositiveInt | None = Field(None, description="Number of blocks; None takes the size's.")
    heads: PositiveInt | None = Field(
        None, description="Attention heads, a divisor of the width; None takes the size's."
    )
    mlp_dim: PositiveInt | None = Field(
        None, description="Hidden width of the MLP; None means 4 x width."
    )
    pool: Literal["token", "mean"] = Field(
        "token", description="What the head sees: the class token, or the mean of the patch tokens."
    )
    num_classes: PositiveInt | None = Field(
        None,
        description=(
            "Outputs of the head; None takes the manifest's number of classes, a number must "
            "agree with it."
        ),
    )
    pre_logits: bool = Field(
        False,
        description=(
            "A tanh layer of the model's width between pool and head, as the authors pretrain on "
            "ImageNet; transfer leaves it out."
        ),
    )
    head_bias: float = Field(
        0.0, description="Initial bias of the (zero) head; -10 for IN-21k with the sigmoid loss."
    )
    dropout: Fraction = Field(
        0.0, description="Dropout rate after embeddings, attention projections and MLPs."
    )
    stochastic_depth: Fraction = Field(
        0.0, description="Drop rate of the last block, rising linearly from 0 at the first."
    )
    checkpoint_blocks: CountFromZero = Field(
        0,
        description=(
            "Activation checkpointing: keep only the input of every k-th block and run the block "
            "again in the backward pass. 1 takes every block, 0 none; results are the same."
        ),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.image_px % self.patch_px:
            below = self.image_px // self.patch_px * self.patch_px
            nearest = " or ".join(str(v) for v in (below, below + self.patch_px) if v > 0)
            raise ValueError(
                f"model.image_px = {self.image_px} is not a multiple of "
                f"model.patch_px = {self.patch_px}; the nearest are {nearest}"
            )
        width = self.width or SIZES[self.size].width
        heads = self.heads or SIZES[self.size].heads
        if width % heads:
            raise ValueError(
                f"model.heads = {heads} does not divide model.width = {width}; "
                "give a number of heads that does"
            )
        return self


class OptimConfig(Section):
    """AdamW."""

    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    beta1: Fraction = Field(0.9, description="Decay of Adam's first moment.")
    beta2: Fraction = Field(0.999, description="Decay of Adam's second moment.")
    eps: PositiveFloat = Field(1e-8, description="Adam's epsilon.")
    weight_decay: NonNegativeFloat = Field(
        0.1,
        description=(
            "Decoupled weight decay of weight matrices; biases, norms, class token and position "
            "embedding have none."
        ),
    )
    clip_norm: PositiveFloat | None = Field(
        1.0,
        description=(
            "Global gradient norm above which gradients are scaled down; None switches it off."
        ),
    )
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description=(
            "Decay of an exponential moving average of the weights, which is evaluated and "
            "exported beside them (0.9999 is usual); None keeps none."
        ),
    )


class BatchConfig(Section):
    """Images of one optimizer step: global = world size x micro x accumulation."""

    global_images: PositiveInt = Field(
        4096, description="Images of one optimizer step over all ranks."
    )
    micro_images: PositiveInt | None = Field(
        None,
        description="Images of one forward pass of one rank; None means one micro batch a step.",
    )
    accumulation_steps: PositiveInt | None = Field(
        None, description="Micro batches of one step; give this or batch.micro-images."
    )

    @model_validator(mode="after")
    def _one_split(self) -> BatchConfig:
        if self.micro_images is not None and self.accumulation_steps is not None:
            raise ValueError(
                f"batch.micro_images = {self.micro_images} and batch.accumulation_steps = "
                f"{self.accumulation_steps} are both set; give at most one"
            )
        return self


class LossConfig(Section):
    """What is minimised."""

    kind: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="softmax cross-entropy, or sigmoid cross-entropy summed over classes.",
    )
    label_smoothing: Fraction = Field(
        0.0, description="Share of the target spread evenly over all classes."
    )


class ZeroConfig(Section):
    """DeepSpeed's partitioning of the training state."""

    stage: Literal[0, 1, 2, 3] = Field(
        1, description="0: none, 1: optimizer states, 2: and gradients, 3: and weights."
    )
    offload_optimizer: bool = Field(
        False,
        description=(
            "Keep master weights and Adam's moments in host memory and update them there; slower, "
            "for stages 1 to 3."
        ),
    )
    sum_precision: Literal["fp32", "same"] = Field(
        "fp32",
        description=(
            "Gradients are summed over the ranks in fp32, or in the same precision as the passes: "
            "half the traffic in bf16 and fp16, and sums that are rounded."
        ),
    )

    @model_validator(mode="after")
    def _offloads_what_is_divided(self) -> ZeroConfig:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError(
                "zero.offload_optimizer needs zero.stage 1, 2 or 3; on a single GPU stage 1 costs "
                "nothing"
            )
        return self


class CheckpointConfig(Section):
    """When the training state is saved and what is kept."""

    every_steps: PositiveInt = Field(
        1000, description="Steps between checkpoints; the last step always saves one."
    )
    keep: PositiveInt = Field(2, description="Newest complete checkpoints kept.")
    milestone_every_steps: PositiveInt | None = Field(
        None, description="Checkpoints at multiples of this many steps are kept for good."
    )
    in_background: bool = Field(
        True,
        description="Pretraining: copy the state to host memory (12 bytes a parameter, shared by "
        "the ranks) and write it while training goes on; false waits until it is written.",
    )


class EvaluationConfig(Section):
    """When validation images are scored (over all ranks, each exactly once)."""

    every_steps: PositiveInt = Field(
        1000, description="Steps between evaluations; the last step always evaluates."
    )
    batch_images: PositiveInt = Field(64, description="Images of one forward pass of one rank.")


class LoggingConfig(Section):
    """What the console and the metrics journal say, and how often."""

    every_steps: PositiveInt = Field(50, description="Steps between console lines and metric rows.")
    peak_tflops: PositiveFloat | None = Field(
        None,
        description=(
            "Peak of one device in TFLOP/s, the base of model FLOPs utilisation (MFU); None takes "
            "the table's of this GPU (docs/planning.md), and leaves MFU out where it has none."
        ),
    )
    group_norms: bool = Field(
        True,
        description=(
            "Pretraining: log norms of gradients, weights and updates by groups of layers; while "
            "it takes them the update of a logging step holds a copy of the fp32 weights."
        ),
    )


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = Field(
        True, description="Send the journal to MLflow; the run folder keeps it either way."
    )
    uri: str | None = Field(
        None,
        description=(
            "MLflow server or store; None means MLFLOW_TRACKING_URI, else sqlite in mlruns/."
        ),
    )
    experiment: str | None = Field(
        None, description="MLflow experiment; None means vitrain-pretrain or vitrain-finetune."
    )
    run_name: str | None = Field(
        None, description="Name of the MLflow run; None means the run folder's name."
    )
    register_as: str | None = Field(
        None,
        description=(
            "Registered model that gets the exported weights as a new version; None registers none."
        ),
    )
