"""Sizes against timm and the papers; initialisation."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import DropPath, use_fused_attn

from configs.errors import RefusedInput
from configs.groups import ModelConfig
from models.zoo import Architecture, build_model, choose_attention

# size, patch, timm's name, parameters in the papers' tables (None: the paper gives none)
SIZES = [
    ("ti", 16, "vit_tiny_patch16_224", None),
    ("s", 16, "vit_small_patch16_224", None),
    ("s", 32, "vit_small_patch32_224", None),
    ("b", 16, "vit_base_patch16_224", 86e6),
    ("b", 32, "vit_base_patch32_224", None),
    ("b", 8, "vit_base_patch8_224", None),
    ("l", 16, "vit_large_patch16_224", 307e6),
    ("h", 14, "vit_huge_patch14_224", 632e6),
]


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("size", "patch_px", "name", "paper"), SIZES)
@pytest.mark.parametrize("num_classes", [1000, 10])
def test_every_tensor_is_timms(size, patch_px, name, paper, num_classes):
    config = ModelConfig(size=size, patch_px=patch_px)
    ours = build_model(Architecture.from_config(config, num_classes), device="meta")
    theirs = timm.create_model(name, num_classes=num_classes, device="meta")
    assert shapes(ours) == shapes(theirs)
    assert num_parameters(ours) == num_parameters(theirs)


@pytest.mark.parametrize(("size", "patch_px", "name", "paper"), [s for s in SIZES if s[3]])
def test_parameter_counts_are_the_papers(size, patch_px, name, paper):
    config = ModelConfig(size=size, patch_px=patch_px)
    model = build_model(Architecture.from_config(config, 1000), device="meta")
    assert num_parameters(model) == pytest.approx(paper, rel=0.02)


def test_options_win_over_the_sizes_row():
    config = ModelConfig(size="ti", width=128, depth=6, heads=4, patch_px=4, image_px=32)
    architecture = Architecture.from_config(config, 7)
    assert (architecture.width, architecture.depth, architecture.heads) == (128, 6, 4)
    assert architecture.mlp_dim == 512
    assert architecture.grid == (8, 8)
    assert architecture.num_tokens == 65


@pytest.mark.parametrize("mlp_dim", [1, 47, 100, 333])
def test_any_mlp_width_is_exact(architecture, mlp_dim):
    model = build_model(replace(architecture, mlp_dim=mlp_dim), device="meta")
    assert model.blocks[0].mlp.fc1.out_features == mlp_dim


@pytest.mark.parametrize("image_px", [(16, 24), (20, 20), (4, 40)])
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_square_and_non_square_inputs_run(architecture, image_px, pool):
    model = build_model(replace(architecture, image_px=image_px, pool=pool), seed=0)
    logits = model(torch.zeros(2, 3, *image_px))
    assert logits.shape == (2, 5)


def test_mean_pool_is_the_mean_of_normalised_patch_tokens(architecture):
    model = build_model(replace(architecture, pool="mean"), seed=0).eval()
    torch.nn.init.eye_(model.head.weight)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    tokens = model.forward_features(images)  # after the final norm
    torch.testing.assert_close(model(images), tokens[:, 1:].mean(dim=1)[:, :5])


def test_mean_pool_loads_into_timms(architecture):
    mean = replace(architecture, pool="mean")
    plain = timm.create_model(
        "vit_base_patch16_224",
        img_size=(16, 24),
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        num_classes=5,
        global_pool="avg",
        fc_norm=False,
    )
    plain.load_state_dict(build_model(mean, seed=0).state_dict(), strict=True)


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_the_head_is_zero_with_the_chosen_bias(architecture, bias):
    model = build_model(architecture, head_bias=bias, seed=0).eval()
    logits = model(torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(logits, torch.full((3, 5), bias))


def test_initialisation_is_the_authors():
    weights = build_model(Architecture(2, 192, 3, 768, 16, (64, 64), 10), seed=0).state_dict()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight"):
        glorot_bound = (6 / sum(weights[name].shape)) ** 0.5
        assert weights[name].abs().max() == pytest.approx(glorot_bound, rel=0.01)
        assert weights[name].std() == pytest.approx(glorot_bound / 3**0.5, rel=0.02)
    patch = weights["patch_embed.proj.weight"]
    assert patch.std() == pytest.approx(patch[0].numel() ** -0.5, rel=0.02)  # LeCun normal
    assert weights["pos_embed"].std() == pytest.approx(0.02, rel=0.05)
    assert not weights["blocks.0.attn.qkv.bias"].any()


def test_the_seed_decides_the_weights_and_leaves_the_generator_alone(architecture):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = build_model(architecture, seed=4).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = build_model(architecture, seed=4), build_model(architecture, seed=5)
    assert all(torch.equal(first[n], t) for n, t in again.state_dict().items())
    assert not torch.equal(first["pos_embed"], other.pos_embed)


def test_the_number_of_classes_changes_only_the_head(architecture):
    few = build_model(architecture, seed=4).state_dict()
    many = build_model(replace(architecture, num_classes=50), seed=4).state_dict()
    assert all(torch.equal(few[n], many[n]) for n in few if not n.startswith("head."))


def test_without_a_seed_the_callers_generator_is_used(architecture):
    torch.manual_seed(4)
    first = build_model(architecture)
    second = build_model(architecture)
    assert not torch.equal(first.pos_embed, second.pos_embed)


def test_dropout_and_stochastic_depth_reach_their_layers(architecture):
    deep = replace(architecture, depth=5)
    model = build_model(deep, dropout=0.1, stochastic_depth=0.2, device="meta")
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert isinstance(model.blocks[4].drop_path2, DropPath)
    block = model.blocks[0]
    drops = [model.pos_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2]
    assert [drop.p for drop in drops] == [0.1] * 4
    assert block.attn.attn_drop.p == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_px": (16, 25)}, "16x25 px is not a multiple of the patch of 4 px"),
        ({"heads": 3}, "3 heads do not divide the width 32"),
        ({"class_token": False}, "needs a class token"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture, change, message):
    with pytest.raises(RefusedInput, match=message):
        replace(architecture, **change)


def test_attention_is_chosen_by_device(architecture):
    before = use_fused_attn()
    try:
        for device_type, fused in (("cpu", False), ("cuda", True)):
            choose_attention(device_type)
            model = build_model(architecture, device="meta")
            assert model.blocks[0].attn.fused_attn is fused
    finally:
        choose_attention("cuda" if before else "cpu")


def test_both_attentions_compute_the_same(architecture):
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    model = build_model(replace(architecture, num_classes=0), seed=0).eval()
    outputs = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        outputs.append(model(images))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
