"""Which parameters decay."""

from dataclasses import replace

import pytest

from models.param_groups import weight_decay_groups
from models.zoo import build_model


@pytest.fixture
def named(architecture):
    model = build_model(architecture, device="meta")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = weight_decay_groups(model, 0.1)
    found = {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}
    return model, groups, found


def test_only_weight_matrices_decay(named):
    _, groups, found = named
    assert [(g["name"], g["weight_decay"]) for g in groups] == [("decay", 0.1), ("no_decay", 0.0)]
    assert all(name.endswith(".weight") for name in found["decay"])
    assert not any("norm" in name for name in found["decay"])
    assert {"patch_embed.proj.weight", "head.weight"} <= set(found["decay"])
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= set(found["no_decay"])


def test_every_parameter_is_in_exactly_one_group(named):
    model, _, found = named
    assert sorted(found["decay"] + found["no_decay"]) == sorted(
        n for n, _ in model.named_parameters()
    )


def test_a_pre_logits_layer_decays_as_other_matrices_do(architecture):
    model = build_model(replace(architecture, pre_logits=True), device="meta")
    decay, no_decay = weight_decay_groups(model, 0.1)
    assert any(p is model.pre_logits.fc.weight for p in decay["params"])
    assert any(p is model.pre_logits.fc.bias for p in no_decay["params"])


def test_frozen_parameters_are_in_none(architecture):
    model = build_model(architecture, device="meta")
    model.pos_embed.requires_grad_(False)
    groups = weight_decay_groups(model, 0.1)
    assert not any(p is model.pos_embed for group in groups for p in group["params"])
