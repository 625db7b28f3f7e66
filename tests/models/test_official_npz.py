"""The authors' checkpoints, in both layouts, against timm's own loader."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from configs.errors import RefusedInput
from models.weights import load_weights, model_from_weights
from tests.models.npz_files import NEWER, OLDER, make_arrays


@pytest.fixture
def square(architecture):
    """An official checkpoint says nothing of its grid, so it has to be square."""
    return replace(architecture, image_px=(20, 20))


@pytest.fixture
def images():
    return torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))


def write(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("layout", [OLDER, NEWER], ids=["older", "newer"])
def test_numbers_are_those_of_timms_loader(tmp_path, square, layout, images):
    path = write(tmp_path / "vit.npz", make_arrays(square, layout))
    weights = load_weights(path)
    assert weights.architecture == square
    assert weights.card is None
    assert weights.left_out == ()
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)
    timms = timm.create_model("vit_base_patch16_224", **square.timm_arguments()).eval()
    timms.load_pretrained(str(path))
    expected = timms.state_dict()
    assert set(weights.state_dict) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights.state_dict[name], tensor), name
    model, report = model_from_weights(weights)
    assert report.added == () and report.left_out == ()
    assert torch.equal(model.eval()(images), timms(images))


def test_what_was_concluded_is_stated(tmp_path, square):
    path = write(tmp_path / "vit.npz", make_arrays(square, OLDER))
    _, report = model_from_weights(load_weights(path), image_px=(16, 24))
    lines = report.lines()
    assert "assumed a square grid of 5x5 patches, from 25 positions" in lines
    assert "resized pos_embed: 5x5 to 4x6 patches, linear" in lines


def test_a_class_token_without_position_is_the_same_function(tmp_path, square, images):
    arrays = make_arrays(square, NEWER, position_of_class=False)
    path = write(tmp_path / "vit.npz", arrays)
    model, _ = model_from_weights(load_weights(path))
    arguments = square.timm_arguments() | {"no_embed_class": True}
    timms = timm.create_model("vit_base_patch16_224", **arguments)
    timms.load_pretrained(str(path))
    torch.testing.assert_close(model.eval()(images), timms.eval()(images))


def test_without_a_class_token_the_head_sees_the_mean(tmp_path, square, images):
    path = write(tmp_path / "vit.npz", make_arrays(square, NEWER, class_token=False))
    weights = load_weights(path)
    assert (weights.architecture.pool, weights.architecture.class_token) == ("mean", False)
    model, _ = model_from_weights(weights)
    tokens = model.eval().forward_features(images)  # after the final norm, as the authors have it
    torch.testing.assert_close(model(images), model.head(tokens.mean(dim=1)))


def test_a_pre_logits_layer_is_read_and_left_behind_by_a_new_task(tmp_path, square, images):
    arrays = make_arrays(square, OLDER)
    generator = np.random.default_rng(3)
    kernel = generator.normal(size=(32, 32)).astype(np.float32)
    bias = generator.normal(size=32).astype(np.float32)
    arrays |= {"pre_logits/kernel": kernel, "pre_logits/bias": bias}
    weights = load_weights(write(tmp_path / "vit.npz", arrays))
    model, report = model_from_weights(weights)
    assert report.left_out == ()
    features = model.eval().forward_features(images)[:, 0]
    expected = torch.tanh(features @ torch.from_numpy(kernel) + torch.from_numpy(bias))
    torch.testing.assert_close(model(images), model.head(expected))
    _, report = model_from_weights(weights, num_classes=3)
    assert report.left_out == (
        "pre_logits.fc.weight",
        "pre_logits.fc.bias",
        "head.weight",
        "head.bias",
    )
    assert report.added == ("head.weight", "head.bias")


def truncate(content):
    return content[:-5000]


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_damaged_file_is_refused(tmp_path, square, damage):
    path = write(tmp_path / "vit.npz", make_arrays(square, OLDER))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RefusedInput, match=r"vit\.npz cannot be read.*download it again"):
        load_weights(path)


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", **{"embedding/kernel": np.array([print], dtype=object)})
    with pytest.raises(RefusedInput, match=r"evil\.npz cannot be read as an \.npz of plain"):
        load_weights(tmp_path / "evil.npz")


def test_another_network_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", **{"conv1/kernel": np.zeros(3)})
    with pytest.raises(RefusedInput, match="not a Vision Transformer in one of the authors' two"):
        load_weights(tmp_path / "other.npz")


def test_a_missing_part_is_refused_by_name(tmp_path, square):
    arrays = make_arrays(square, OLDER)
    missing = "Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias"
    del arrays[missing]
    with pytest.raises(RefusedInput, match=missing):
        load_weights(write(tmp_path / "vit.npz", arrays))
