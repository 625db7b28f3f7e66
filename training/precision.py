"""Which precision "auto" stands for on this machine."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16"]


def resolve_precision(requested: Literal["auto", "fp32", "bf16"], device_type: str) -> Precision:
    """The compute precision to use on `device_type` ("cuda" or "cpu").

    "auto" is bf16 on a GPU and on a CPU that multiplies bf16 in hardware, else fp32: without the
    instructions bf16 is emulated and slower than fp32; with them a small ViT's step took less than
    a third of the time (docs/benchmarks/cpu_step.md).
    """
    if requested != "auto":
        return requested
    return "bf16" if device_type != "cpu" or _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
