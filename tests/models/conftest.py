"""Small models for all tests of this folder."""

import pytest
import torch

from models.weights import WeightsCard
from models.zoo import Architecture, build_model


@pytest.fixture
def architecture():
    """2 blocks of width 32 on 4x6 patches: not square, so that a guessed grid shows."""
    return Architecture(
        depth=2, width=32, heads=2, mlp_dim=48, patch_px=4, image_px=(16, 24), num_classes=5
    )


@pytest.fixture
def model(architecture):
    """Its weights, with a head that is not zero."""
    built = build_model(architecture, seed=1)
    generator = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(built.head.weight, std=0.1, generator=generator)
    return built.eval()


@pytest.fixture
def card(architecture):
    return WeightsCard(
        architecture,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        classes=("ape", "bär", "cat", "dog", "elk"),
        data_digest="d" * 64,
        commit="c" * 40,
        extra={"run_id": "r1", "steps": 7},
    )
