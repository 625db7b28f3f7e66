"""Which precision "auto" stands for on this machine."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(
    requested: Literal["auto", "fp32", "bf16", "fp16"], device_type: str
) -> Precision:
    """The compute precision to use on `device_type` ("cuda" or "cpu").

    "auto" is bf16 where the hardware multiplies it, else fp32. Without the instructions bf16 is
    emulated and slower than fp32 (on a V100 or T4 as on most CPUs); with them a small ViT's step on
    a CPU took less than a third of the time (docs/benchmarks/cpu_step.md).
    """
    if requested != "auto":
        return requested
    multiplies = _cpu_multiplies_bf16 if device_type == "cpu" else _gpu_multiplies_bf16
    return "bf16" if multiplies() else "fp32"


def _gpu_multiplies_bf16() -> bool:
    import torch

    # Emulation counts unless it is said otherwise.
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_multiplies_bf16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
