"""What a head is given, against timm's own pre-logits."""

from dataclasses import replace

import pytest
import torch

from models.features import head_inputs
from models.zoo import build_model


def images(architecture):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, *architecture.image_px, generator=generator)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "mean"},
        {"pool": "mean", "norm_after_pool": True},
        {"num_classes": 0},
        {"pre_logits": True},
    ],
)
def test_features_are_timms_pre_logits(architecture, changes):
    architecture = replace(architecture, **changes)
    model = build_model(architecture, seed=1).eval()
    inputs = images(architecture)
    with torch.no_grad(), head_inputs(model) as features:
        model(inputs)
        found = features()
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    assert found.shape == (3, 32) and torch.equal(found, expected)


@pytest.mark.integration  # for the seconds that torch's compiler takes to import
def test_a_compiled_model_gives_them_too_and_is_left_as_it_was(architecture, model):
    model.compile(backend="eager")  # in place, as DeepSpeed's engine does
    inputs = images(architecture)
    with torch.no_grad():
        before = model(inputs)
        with head_inputs(model) as features:
            model(inputs)
            assert features().shape == (3, 32)
        torch.testing.assert_close(model(inputs), before)
    assert not model.head._forward_pre_hooks
