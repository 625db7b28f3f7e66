"""What is known about a set of weights beside the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from configs.errors import RefusedInput
from models.zoo import Architecture

FORMAT = "vitrain weights"
FORMAT_VERSION = 1

StateDict = dict[str, torch.Tensor]
PerChannel = tuple[float, float, float]

AUTHORS_MEAN: PerChannel = (0.5, 0.5, 0.5)
AUTHORS_STD: PerChannel = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class WeightsCard:
    """What model.json says.

    Attributes:
        architecture: Shapes and pooling.
        mean: Subtracted from each channel of an image in [0, 1].
        std: Divides it then.
        classes: Names of the head's outputs, in order; empty where they are not known.
        data_digest: Digest of the training data's manifest; "" where it is not known.
        commit: Commit of the code that trained them; "" where it is not known.
        extra: Anything else, JSON-able (run id, steps, metrics).
    """

    architecture: Architecture
    mean: PerChannel = AUTHORS_MEAN
    std: PerChannel = AUTHORS_STD
    classes: tuple[str, ...] = ()
    data_digest: str = ""
    commit: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self, weights_sha256: str) -> str:
        """Text of model.json."""
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": asdict(self.architecture),
            "normalisation": {"mean": self.mean, "std": self.std},
            # timm.create_model("vit_base_patch16_224", **timm_arguments) makes this model
            "timm_arguments": self.architecture.timm_arguments(),
            "num_classes": self.architecture.num_classes,
            "classes": self.classes,
            "data_digest": self.data_digest,
            "commit": self.commit,
            "weights_sha256": weights_sha256,
            "extra": self.extra,
        }
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> WeightsCard:
        """Undo `to_json`; KeyError, TypeError or ValueError for anything else."""
        architecture = dict(record["architecture"])
        architecture["image_px"] = tuple(architecture["image_px"])
        return cls(
            architecture=Architecture(**architecture),
            mean=tuple(record["normalisation"]["mean"]),
            std=tuple(record["normalisation"]["std"]),
            classes=tuple(record["classes"]),
            data_digest=record["data_digest"],
            commit=record["commit"],
            extra=dict(record["extra"]),
        )


@dataclass(frozen=True)
class Weights:
    """Weights as read from somewhere, under timm's names, fp32.

    Attributes:
        state_dict: Tensors by timm's parameter names.
        card: What came with them; None for files that carry only numbers.
        source: Where they came from, for messages.
        architecture: The card's, or what the shapes say.
        mean: Normalisation, the card's or the authors' (values in [-1, 1]).
        std: As `mean`.
        assumptions: What no card said and was concluded, in sentences.
        left_out: Names in the source that have no place in timm's model.
    """

    state_dict: StateDict
    card: WeightsCard | None
    source: str
    architecture: Architecture
    mean: PerChannel = AUTHORS_MEAN
    std: PerChannel = AUTHORS_STD
    assumptions: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def read_card(path: Path) -> tuple[WeightsCard, str]:
    """Read model.json.

    Returns:
        The card, and the digest its weights must have.

    Raises:
        RefusedInput: Damaged, of another kind, or of a newer format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise RefusedInput(f"{path} is not a weights card (its format is not '{FORMAT}')")
        if record["format_version"] > FORMAT_VERSION:
            raise RefusedInput(
                f"{path} has format version {record['format_version']}, this program reads up to "
                f"{FORMAT_VERSION}; use a newer vitrain"
            )
        return WeightsCard.from_json(record), record["weights_sha256"]
    except RefusedInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedInput(
            f"{path} cannot be read as a weights card ({type(error).__name__}: {error}); "
            "export the weights again"
        ) from error
