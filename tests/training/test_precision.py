"""What "auto" stands for."""

import pytest
import torch

from training.precision import resolve_precision


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_a_stated_precision_is_kept(asked, device_type):
    assert resolve_precision(asked, device_type) == asked


def test_auto_is_bf16_on_a_gpu():
    assert resolve_precision("auto", "cuda") == "bf16"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")],
)
def test_auto_on_a_cpu_follows_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", "cpu") == expected
