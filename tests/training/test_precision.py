"""What "auto" stands for."""

import pytest
import torch

from training.precision import resolve_precision


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_stated_precision_is_kept(asked, device_type):
    assert resolve_precision(asked, device_type) == asked


@pytest.mark.parametrize(("multiplies", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu_is_bf16_only_where_it_is_not_emulated(monkeypatch, multiplies, expected):
    """A V100 or T4 says yes as long as emulation counts."""

    def is_supported(including_emulation=True):
        return including_emulation or multiplies

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert resolve_precision("auto", "cuda") == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")],
)
def test_auto_on_a_cpu_follows_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", "cpu") == expected
