"""Options that choose among the images of a dataset, the same in every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from configs.section import CountFromZero, PositiveInt, Section

# YAML reads `classes: [7, 9]` as numbers.
ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]


class SubsetConfig(Section):
    """Which of the images are used: filters on the index, so nothing is rewritten."""

    label_map: Path | None = Field(
        None,
        description=(
            "YAML or JSON file of `class: new class` lines; classes that it leaves out are "
            "dropped. None keeps the classes as they are."
        ),
    )
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = Field(
        None,
        description=(
            "Classes to use, after data.label-map: names, their first words (WordNet ids), or "
            "@FILE with a name a line. None takes all."
        ),
    )
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None,
        description=(
            "Share of each class's training images to use (at least one image); a smaller share "
            "is part of a larger one. None takes all."
        ),
    )
    images_per_class: PositiveInt | None = Field(
        None, description="Training images of each class to use; None takes all."
    )
    subset_seed: CountFromZero | None = Field(
        None,
        description=(
            "Seed of data.fraction's and data.images-per-class's choice; None takes the run's."
        ),
    )
    exclude: Path | None = Field(
        None,
        description=(
            "Parquet file that names training images to leave out (columns train_shard, "
            "train_key), as data_pipeline.leaks writes it."
        ),
    )

    @model_validator(mode="after")
    def _one_amount(self) -> SubsetConfig:
        if self.fraction is not None and self.images_per_class is not None:
            raise ValueError(
                f"data.fraction = {self.fraction} and data.images_per_class = "
                f"{self.images_per_class} are both set; give one (null removes the other)"
            )
        return self
