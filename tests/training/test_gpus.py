"""The GPU table: found by a device's own name, and what MFU is a share of."""

import pytest
import torch

from training.gpus import gpu_of_device, peak_flops


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("Tesla T4", "t4-16gb"),
        ("Tesla K80", None),
    ],
)
def test_a_device_is_found_in_the_table_by_its_name(name, row):
    found = gpu_of_device(name)
    assert (found.name if found else None) == row


def test_the_peak_is_the_one_given_or_the_tables(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert peak_flops(None, gpu, "bf16") == 312e12
    assert peak_flops(None, gpu, "fp32") == 19.5e12
    assert peak_flops(100.0, gpu, "bf16") == peak_flops(100.0, cpu, "bf16") == 100e12
    assert peak_flops(None, cpu, "fp32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla K80")
    assert peak_flops(None, gpu, "fp32") is None
