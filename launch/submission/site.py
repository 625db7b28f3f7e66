"""The site file: what a cluster wants in every job, written once by whoever knows the cluster.

`launch/site.example.yaml` has every key with a comment; docs/slurm.md says where it goes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from configs.section import CountFromZero, PositiveInt, Section
from configs.yaml_file import read_yaml, validate

SITE_VARIABLE = "VITRAIN_SITE"
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SiteConfig(Section):
    """Defaults of a cluster; an option of the command line goes before its key here."""

    partition: str | None = Field(None, description="Partition of all jobs.")
    account: str | None = Field(None, description="Account that is charged.")
    qos: str | None = Field(None, description="Quality of service.")
    mem: str | None = Field(None, description="Memory of a node, as --mem takes it: 0 is all.")
    cpus_per_rank: PositiveInt | None = Field(
        None, description="Cores of a rank; None means 8 beside a GPU, 1 without."
    )
    gpu: str | None = Field(
        None, description="Kind of GPU, as launch.plan knows it; None leaves memory unchecked."
    )
    gpu_request: str = Field(
        "--gpus-per-node={gpus}", description="How GPUs of a node are asked for."
    )
    signal_seconds: PositiveInt = Field(
        300, description="Seconds before the time limit at which a run is asked to save."
    )
    max_restarts: CountFromZero = Field(
        100, description="Times a job may come back, whatever the reason."
    )
    sbatch: tuple[str, ...] = Field((), description="Further options of sbatch, one a line.")
    srun: tuple[str, ...] = Field((), description="Further options of srun.")
    container: tuple[str, ...] = Field(
        (), description="Words before python: the command that runs it in a container."
    )
    python: str | None = Field(
        None, description="Interpreter; None means the one that submits, or python in a container."
    )
    environment: dict[str, str | int | float] = Field(
        default_factory=dict, description="Variables that the job exports."
    )
    setup: tuple[str, ...] = Field(
        (), description="Lines of bash before the run starts, as they are: module load and such."
    )

    @field_validator("environment")
    @classmethod
    def _names(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name in variables:
            if not _VARIABLE_NAME.fullmatch(name):
                raise ValueError(f"environment.{name}: is not the name of a variable")
        return variables

    @field_validator("gpu_request", "sbatch")
    @classmethod
    def _options(cls, given: Any) -> Any:
        for text in (given,) if isinstance(given, str) else given:
            if not text.startswith("-") or "\n" in text:
                raise ValueError(f"{text!r}: give an option of sbatch, such as --constraint=h100")
        return given

    @property
    def in_container(self) -> bool:
        """Whether the run's python is in a container, be it Apptainer's or Pyxis's."""
        return bool(self.container) or any(
            word.startswith("--container-image") for word in self.srun
        )


def read_site(given: Path | None, environment: Mapping[str, str] = os.environ) -> SiteConfig:
    """The site file given, else the one that VITRAIN_SITE names, else the defaults.

    Raises:
        RefusedInput: It cannot be read, or holds an unknown key or a wrong value, which is named.
    """
    option = "--site"
    if given is None:
        named = environment.get(SITE_VARIABLE)
        if not named:
            return SiteConfig()
        given, option = Path(named), f"{SITE_VARIABLE} ="
    return validate(SiteConfig, read_yaml(given, option))
