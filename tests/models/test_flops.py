"""FLOPs against torch's counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.groups import ModelConfig
from models.flops import forward_flops_per_image
from models.zoo import Architecture, build_model


def counted(architecture):
    model = build_model(architecture, device="meta")
    for block in model.blocks:
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *architecture.image_px, device="meta"))
    return counter.get_total_flops()


def test_torch_counts_the_same(architecture):
    for variant in (architecture, replace(architecture, pool="mean", class_token=False)):
        assert forward_flops_per_image(variant) == counted(variant)


@pytest.mark.parametrize(
    ("size", "patch_px", "giga_multiply_adds"), [("b", 16, 17.56), ("l", 16, 61.55)]
)
def test_known_sizes(size, patch_px, giga_multiply_adds):
    """Multiply-adds as timm's results tables list them (GMACs at 224 px)."""
    config = ModelConfig(size=size, patch_px=patch_px)
    flops = forward_flops_per_image(Architecture.from_config(config, 1000))
    assert flops / 2e9 == pytest.approx(giga_multiply_adds, rel=0.01)
