"""The GPU table: peak rates without sparsity, memory, power, and where each row is from."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import RefusedInput
from training.precision import Precision

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    Attributes:
        name: As `--gpu` takes it.
        half_tflops: Peak of dense bf16 or fp16 matrix products summed in fp32, in TFLOP/s.
        fp32_tflops: Peak of fp32 products, without TF32 (which training does not switch on).
        memory_gib: What PyTorch reports as total, a little less than the name says.
        watts: Board power limit.
        source: Of the rates and the power.
        multiplies_bf16: Or fp16 only.
    """

    name: str
    half_tflops: float
    fp32_tflops: float
    memory_gib: float
    watts: float
    source: str
    multiplies_bf16: bool = True

    def tflops(self, precision: Precision) -> float:
        """Peak in a precision of the passes."""
        return self.fp32_tflops if precision == "fp32" else self.half_tflops


_V100 = "NVIDIA V100 data sheet (SXM2)"
_ROWS = (
    Gpu("t4-16gb", 65.0, 8.1, 14.6, 70, "NVIDIA T4 data sheet", multiplies_bf16=False),
    Gpu("v100-16gb", 125.0, 15.7, 15.7, 300, _V100, multiplies_bf16=False),
    Gpu("v100-32gb", 125.0, 15.7, 31.7, 300, _V100, multiplies_bf16=False),
    Gpu("a10-24gb", 125.0, 31.2, 22.0, 150, "NVIDIA A10 data sheet"),
    Gpu("a100-40gb", 312.0, 19.5, 39.4, 400, "NVIDIA A100 data sheet (SXM4)"),
    Gpu("a100-80gb", 312.0, 19.5, 79.1, 400, "NVIDIA A100 data sheet (SXM4)"),
    Gpu("h100-80gb", 989.4, 66.9, 79.1, 700, "NVIDIA H100 architecture white paper (SXM5)"),
    Gpu("h100-pcie-80gb", 756.0, 51.0, 79.1, 350, "NVIDIA H100 data sheet (PCIe)"),
    Gpu("h200-141gb", 989.4, 66.9, 139.7, 700, "NVIDIA H200 data sheet (SXM)"),
    Gpu("l40s-48gb", 362.05, 91.6, 44.4, 350, "NVIDIA L40S data sheet"),
    Gpu("rtx-3090-24gb", 71.0, 35.6, 23.5, 350, "NVIDIA GA102 architecture white paper"),
    Gpu("rtx-4090-24gb", 165.2, 82.6, 23.5, 450, "NVIDIA Ada architecture white paper"),
    Gpu("mi250x-gcd-64gb", 191.5, 47.9, 64.0, 280, "AMD MI250X data sheet, half a board"),
    Gpu("mi300x-192gb", 1307.4, 163.4, 191.5, 750, "AMD MI300X data sheet"),
)
GPUS = {gpu.name: gpu for gpu in _ROWS}
# Without the memory where a name has it once only, and the usual short names.
_SHORT = {
    "t4": "t4-16gb",
    "v100": "v100-16gb",
    "a100": "a100-40gb",
    "h100": "h100-80gb",
    "h200": "h200-141gb",
}
_SHORT |= {"l40s": "l40s-48gb", "a10": "a10-24gb", "mi300x": "mi300x-192gb"}
_SHORT |= {"rtx-3090": "rtx-3090-24gb", "rtx-4090": "rtx-4090-24gb"}


def gpu_of_device(name: str) -> Gpu | None:
    """The row of a device, by the name that its driver gives it; None if there is none.

    Of rows that differ only in their memory, the first, unless the name says how much there is.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    parts = {gpu: gpu.name.split("-") for gpu in _ROWS}
    able = [gpu for gpu, (*kind, _) in parts.items() if words.issuperset(kind)]
    return max(able, key=lambda gpu: len(words.intersection(parts[gpu])), default=None)


def peak_flops(
    given_tflops: float | None, device: torch.device, precision: Precision
) -> float | None:
    """Peak FLOP/s of a device, the base of MFU: as given, else the table's; None if neither knows.

    Args:
        given_tflops: In TFLOP/s, by the user.
        device: Where forward and backward passes run.
        precision: Of theirs.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda":
        return None
    import torch

    gpu = gpu_of_device(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.tflops(precision) * 1e12


def find_gpu(name: str) -> Gpu:
    """The row of a name, upper or lower case.

    Raises:
        RefusedInput: There is none; the nearest names are offered.
    """
    key = name.lower()
    key = _SHORT.get(key, key)
    if key in GPUS:
        return GPUS[key]
    near = difflib.get_close_matches(key, GPUS, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(GPUS)}."
    raise RefusedInput(
        f"--gpu {name}: not in the table; {known} For another one give the nearest with "
        "--gpu-memory-gib, --peak-tflops and --gpu-watts"
    )
