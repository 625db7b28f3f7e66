"""What is ours in the Vision Transformer: the pre-logits layer, and blocks that run twice."""

from dataclasses import replace

import pytest
import torch

from models.vit import RecomputableBlock, checkpoint_blocks, num_recomputed
from models.weights import load_weights, model_from_weights, save_weights
from models.zoo import build_model

IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def with_pre_logits(architecture):
    return replace(architecture, pre_logits=True)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_pre_logits_are_the_tanh_of_a_linear_layer(with_pre_logits, pool):
    model = build_model(replace(with_pre_logits, pool=pool), seed=0).eval()
    torch.nn.init.eye_(model.head.weight)
    tokens = model.forward_features(IMAGES)
    pooled = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(dim=1)
    weight, bias = (model.state_dict()[f"pre_logits.fc.{name}"] for name in ("weight", "bias"))
    expected = torch.tanh(pooled @ weight.T + bias)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)
    torch.testing.assert_close(model(IMAGES), expected[:, :5])


def test_pre_logits_start_as_the_authors_do(with_pre_logits):
    """LeCun normal, as flax's dense layers; the rest of the model is as without."""
    wide = replace(with_pre_logits, width=256)
    weights = build_model(wide, seed=0).state_dict()
    assert weights["pre_logits.fc.weight"].std() == pytest.approx(256**-0.5, rel=0.02)
    assert not weights["pre_logits.fc.bias"].any()
    plain = build_model(replace(wide, pre_logits=False), seed=0).state_dict()
    assert plain.keys() == {name for name in weights if not name.startswith("pre_logits")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.items())


def test_a_new_task_leaves_the_pre_logits_behind(with_pre_logits, card, tmp_path):
    model = build_model(with_pre_logits, seed=0).eval()
    torch.nn.init.normal_(model.head.weight)
    folder = save_weights(
        tmp_path / "export", model.state_dict(), replace(card, architecture=with_pre_logits)
    )
    weights = load_weights(folder)
    same, _ = model_from_weights(weights)
    assert torch.equal(same.eval()(IMAGES), model(IMAGES))
    other, report = model_from_weights(weights, num_classes=3)
    assert "pre_logits.fc.weight" in report.left_out and "head.weight" in report.left_out
    assert not any(name.startswith("pre_logits") for name in other.state_dict())
    torch.testing.assert_close(
        other.eval().forward_features(IMAGES), model.forward_features(IMAGES)
    )


@pytest.mark.parametrize(
    ("every", "chosen"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])]
)
def test_every_kth_block_runs_again(architecture, every, chosen):
    model = build_model(replace(architecture, depth=5), device="meta")
    checkpoint_blocks(model, every)
    assert [i for i, block in enumerate(model.blocks) if block.recompute] == chosen
    assert num_recomputed(5, every) == len(chosen)
    checkpoint_blocks(model, 0)
    assert not any(block.recompute for block in model.blocks)


@pytest.mark.parametrize("every", [1, 2])
def test_running_again_changes_no_bit(architecture, every):
    """Also where random numbers are drawn; and it does run again."""
    runs = []
    model = build_model(
        replace(architecture, depth=4), dropout=0.2, stochastic_depth=0.5, head_bias=1.0, seed=0
    )
    torch.nn.init.normal_(model.head.weight)
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda *_: runs.append(1))
    found = []
    for chosen in (0, every):
        checkpoint_blocks(model, chosen)
        torch.manual_seed(3)
        runs.clear()
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()] + [torch.rand(1)])
        assert len(runs) == 4 + num_recomputed(4, chosen)
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_scoring_runs_no_block_twice(architecture):
    model = build_model(architecture, seed=0).eval()
    expected = model(IMAGES)
    checkpoint_blocks(model, 1)
    assert isinstance(model.blocks[0], RecomputableBlock)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), expected)
