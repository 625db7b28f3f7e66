"""What `gpu_pretrain.py` can measure: models, contestants, where batches are from, and variants."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from models.zoo import Architecture

PLAIN = "plain"
# Kernels of torch's scaled_dot_product_attention, which both contestants call; by default torch
# chooses.
ATTENTION = {
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "math": "MATH",
}
_OF_BOTH = (
    *(PLAIN, "compile", "cuda_graphs", "channels_last", "checkpoint", "accumulate"),
    *ATTENTION,
)
VARIANTS = {
    "ours": (*_OF_BOTH, "foreach", "cudnn_search", "decode_cuda"),
    "timm": (*_OF_BOTH, "fused"),
    "timm_script": (PLAIN, "compile", "channels_last", "checkpoint", "accumulate", "fused"),
}
REAL_ONLY = {"timm_script", "decode_cuda"}
ACCUMULATED = 4


@dataclass(frozen=True)
class Model:
    """A size: its name in timm, its patch side, and the images of a step where 80 GB are there."""

    timm_name: str
    patch_px: int
    batch_images: int


MODELS = {
    "s": Model("vit_small_patch16_224", 16, 512),
    "b": Model("vit_base_patch16_224", 16, 256),
    "l": Model("vit_large_patch16_224", 16, 128),
    "h": Model("vit_huge_patch14_224", 14, 64),
}
TOY = {"image_px": 32, "patch_px": 8, "depth": 2, "width": 64, "heads": 2}
TOY_BATCH = 8


@dataclass(frozen=True)
class Case:
    """One thing to measure, named `size:data:who:variant`."""

    size: str
    data: str
    who: str
    variant: str = PLAIN

    @classmethod
    def of(cls, name: str) -> Case:
        """The case of a name; the variant may be left out.

        Raises:
            argparse.ArgumentTypeError: There is no such case.
        """
        case = cls(*name.split(":")) if name.count(":") in (2, 3) else None
        known = case is not None and (
            case.size in MODELS
            and case.data in ("synthetic", "real")
            and case.variant in VARIANTS.get(case.who, ())
            and (case.data == "real" or not REAL_ONLY & {case.who, case.variant})
        )
        if case is None or not known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not size:data:who[:variant] with size {'|'.join(MODELS)}, data "
                f"synthetic|real, who {'|'.join(VARIANTS)}, and a variant of that one: {VARIANTS}; "
                f"{' and '.join(sorted(REAL_ONLY))} take real data"
            )
        return case

    @property
    def name(self) -> str:
        """As `of` takes it."""
        return ":".join((self.size, self.data, self.who, self.variant))

    @property
    def model(self) -> Model:
        """The model."""
        return MODELS[self.size]

    @property
    def accumulation_steps(self) -> int:
        """Micro batches of a step."""
        return ACCUMULATED if self.variant == "accumulate" else 1

    def batch_images(self, options: argparse.Namespace) -> int:
        """Images of a step."""
        return TOY_BATCH if options.toy else options.batch.get(self.size, self.model.batch_images)

    def attention(self) -> AbstractContextManager[None]:
        """The kernel of attention that the variant names, while the block runs."""
        if self.variant not in ATTENTION:
            return nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel([getattr(SDPBackend, ATTENTION[self.variant])])  # type: ignore[no-any-return]


def architecture_of(case: Case, options: argparse.Namespace, num_classes: int) -> Architecture:
    """What our and timm's model both are."""
    from configs.groups import ModelConfig
    from models.zoo import Architecture

    shape = TOY if options.toy else {"patch_px": case.model.patch_px}
    return Architecture.from_config(ModelConfig(size=case.size, **shape), num_classes)


def compute_device() -> torch.device:
    """The GPU, or the CPU where there is none or DS_ACCELERATOR says so."""
    import os

    import torch

    is_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    return torch.device("cpu") if is_cpu else torch.device("cuda", 0)
