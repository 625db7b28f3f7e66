"""Which part of the model a parameter counts to."""

import pytest

from models.layer_groups import layer_groups
from models.zoo import Architecture, build_model


def names_of(depth, prefix=""):
    architecture = Architecture(
        width=32, depth=depth, heads=2, mlp_dim=32, patch_px=4, image_px=(8, 8), num_classes=3
    )
    model = build_model(architecture, device="meta")
    return [prefix + name for name, _ in model.named_parameters()]


def test_every_parameter_has_a_group_in_the_order_of_the_model():
    groups = layer_groups(names_of(3))
    assert list(groups) != [] and set(groups) == set(names_of(3))
    expected = ["patch_embedding", "block_00", "block_01", "block_02", "head"]
    assert list(dict.fromkeys(groups.values())) == expected
    assert groups["cls_token"] == groups["patch_embed.proj.bias"] == "patch_embedding"
    assert groups["norm.weight"] == groups["head.bias"] == "head"


@pytest.mark.parametrize(
    ("depth", "number", "second"),
    [(12, 12, "block_01"), (24, 12, "blocks_02-03"), (32, 11, "blocks_03-05")],
)
def test_many_blocks_are_joined(depth, number, second):
    groups = list(dict.fromkeys(layer_groups(names_of(depth)).values()))[1:-1]
    assert len(groups) == number
    assert groups[1] == second
    assert groups[-1].endswith(str(depth - 1))


def test_names_of_a_compiled_model_are_understood():
    plain, compiled = layer_groups(names_of(2)), layer_groups(names_of(2, "_orig_mod."))
    assert list(plain.values()) == list(compiled.values())
