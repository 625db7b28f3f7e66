"""Options of the few-shot linear probe, the same in every stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from configs.section import CountFromZero, PositiveFloat, PositiveInt, Section


class ProbeConfig(Section):
    """A ridge regression on the features of a few training images of each class."""

    shots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (1, 5, 10, 25), description="Training images of each class; a probe for each number."
    )
    seeds: Annotated[tuple[CountFromZero, ...], Field(min_length=1)] = Field(
        (0, 1, 2), description="Seeds of the choice of training images; a probe for each."
    )
    ridge: PositiveFloat = Field(
        1024.0, description="Weight of the squared weights in the regression."
    )
    resize_px: PositiveInt | None = Field(
        None,
        description=(
            "Side of the square that an image is squeezed into before the centre crop, in pixels; "
            "None means 8/7 of the input (256 for 224)."
        ),
    )

    @model_validator(mode="after")
    def _each_once(self) -> ProbeConfig:
        for name, values in (("shots", self.shots), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                told = " ".join(map(str, values))
                raise ValueError(f"{name} = {told}: one is given twice; give each once")
        return self


class FewShotConfig(ProbeConfig):
    """Few-shot linear probes while pretraining goes on; off unless tasks are given."""

    tasks: tuple[str, ...] = Field(
        (),
        description=(
            "Folders of a task each, with shards in train/ and test/ (or val/), or in FOLDER-train "
            "and FOLDER-test (what finetuning builds in datasets/vitrain-shards/)."
        ),
    )
    every_steps: PositiveInt | None = Field(
        None, description="Steps between probes; None probes after the last step only."
    )
    every_epochs: PositiveFloat | None = Field(
        None, description="Passes over the training set between probes, instead of every-steps."
    )

    @model_validator(mode="after")
    def _one_cadence(self) -> FewShotConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError(
                f"few_shot.every_steps = {self.every_steps} and few_shot.every_epochs = "
                f"{self.every_epochs} are both set; give one (null removes the other)"
            )
        return self
