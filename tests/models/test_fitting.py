"""Weights into models of other sizes and tasks."""

from dataclasses import replace

import pytest
import torch

from configs.errors import RefusedInput
from models.pos_embed import resize_position_embedding
from models.weights import load_into, load_weights, model_from_weights, save_weights
from models.zoo import build_model


@pytest.fixture
def weights(tmp_path, model, card):
    return load_weights(save_weights(tmp_path / "export", model.state_dict(), card))


@pytest.mark.parametrize("method", ["linear", "bicubic"])
def test_another_resolution_uses_the_cards_grid(weights, model, method):
    """24 patches are no square: a guessed grid would fail or garble."""
    bigger, report = model_from_weights(weights, image_px=32, position_embedding=method)
    expected = resize_position_embedding(model.pos_embed, (4, 6), (8, 8), 1, method)
    assert torch.equal(bigger.pos_embed, expected)
    assert report.resized == {"pos_embed": f"4x6 to 8x8 patches, {method}"}
    assert torch.equal(bigger.head.weight, model.head.weight)
    assert bigger(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_as_many_patches_in_another_shape_are_resized(weights, model):
    turned, report = model_from_weights(weights, image_px=(24, 16))
    assert report.resized["pos_embed"] == "4x6 to 6x4 patches, linear"
    assert not torch.equal(turned.pos_embed, model.pos_embed)


@pytest.mark.parametrize("num_classes", [5, 7])
def test_a_new_head_is_zero_even_for_as_many_classes(weights, num_classes):
    model, report = model_from_weights(weights, num_classes=num_classes, seed=0)
    assert model.head.weight.shape == (num_classes, 32)
    assert not model.head.weight.any() and not model.head.bias.any()
    assert report.left_out == report.added == ("head.weight", "head.bias")
    assert "new, not from the weights: head.weight, head.bias" in report.lines()


def test_every_tensor_is_accounted_for(weights, model):
    _, report = model_from_weights(weights, num_classes=7)
    assert set(report.loaded) | set(report.left_out) == set(model.state_dict())
    assert set(report.loaded) | set(report.added) == set(model.state_dict())
    assert not set(report.loaded) & set(report.added)


def test_a_head_that_does_not_fit_is_refused(weights, architecture):
    other = build_model(replace(architecture, num_classes=7))
    with pytest.raises(RefusedInput, match="head for 5 classes, the model one for 7"):
        load_into(other, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"patch_px": 8, "image_px": (16, 24)},
            "patches of 4 px, the model with 8 px; set model.patch_px to 4",
        ),
        ({"width": 64}, r"does not fit the model: .* instead of"),
        ({"depth": 1}, r"no place for blocks\.1\."),
        ({"depth": 3}, r"lacks blocks\.2\."),
        ({"pool": "mean", "norm_after_pool": True}, r"lacks fc_norm\.weight"),
    ],
)
def test_another_architecture_is_refused_and_left_as_it_was(weights, architecture, change, message):
    other = build_model(replace(architecture, **change), seed=0)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(RefusedInput, match=message):
        load_into(other, weights)
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())


def test_both_pools_take_the_same_weights(weights, architecture):
    mean = build_model(replace(architecture, pool="mean"))
    report = load_into(mean, weights)
    assert report.added == report.left_out == ()


def test_weights_without_a_head_need_a_new_one(weights, architecture):
    body = {n: t for n, t in weights.state_dict.items() if not n.startswith("head.")}
    headless = replace(weights, state_dict=body)
    with pytest.raises(RefusedInput, match=r"has no head \(head\.weight\)"):
        load_into(build_model(architecture), headless)
    _, report = model_from_weights(headless, num_classes=3)
    assert report.added == ("head.weight", "head.bias") and report.left_out == ()


def test_the_weights_themselves_stay_as_they_were(weights):
    before = {name: tensor.clone() for name, tensor in weights.state_dict.items()}
    model, _ = model_from_weights(weights, image_px=32, num_classes=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert all(torch.equal(before[n], t) for n, t in weights.state_dict.items())


def test_an_image_that_is_no_multiple_of_the_patch_is_refused(weights):
    with pytest.raises(RefusedInput, match="30x30 px is not a multiple of the patch of 4 px"):
        model_from_weights(weights, image_px=30)
