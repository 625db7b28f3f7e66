"""timm's files and hub; nothing pickled runs."""

import pickle
import time

import pytest
import timm
import torch

from configs.errors import RefusedInput
from models import foreign_weights
from models.foreign_weights import weights_of_timm_model
from models.weights import load_weights, model_from_weights
from models.zoo import Architecture, build_model

TINY = Architecture(
    depth=1, width=192, heads=3, mlp_dim=768, patch_px=16, image_px=(48, 48), num_classes=5
)


@pytest.fixture
def state():
    return build_model(TINY, seed=0).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict": {n: t + 1 for n, t in s.items()}, "state_dict_ema": s},
        lambda s: {"model": {f"module.{n}": t for n, t in s.items()}},
        lambda s: {"model": {n: t.double() for n, t in s.items()}, "args": [1, 2]},
    ],
    ids=["plain", "timm", "model", "averaged first", "data parallel", "with extras"],
)
def test_pickled_state_dicts_are_read(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "vit.pth")
    weights = load_weights(tmp_path / "vit.pth")
    assert weights.architecture == TINY
    assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in state.items())
    model, report = model_from_weights(weights, image_px=64, num_classes=2)
    assert report.resized == {"pos_embed": "3x3 to 4x4 patches, linear"}
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_the_other_names_of_pickles(tmp_path, state, suffix):
    torch.save(state, tmp_path / f"vit{suffix}")
    assert load_weights(tmp_path / f"vit{suffix}").architecture == TINY


class Bomb:
    """What a hostile checkpoint looks like: unpickling it would run code."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (torch.save, "loading it would run exec"),
        (lambda content, path: path.write_bytes(pickle.dumps(content)), "or not a checkpoint"),
    ],
    ids=["torch.save", "pickle.dumps"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, write, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    write({"model": {"a": 1.0}, "args": Bomb()}, path)
    with pytest.raises(
        RefusedInput, match=rf"evil\.pth cannot be read as plain weights: .*{reason}"
    ):
        load_weights(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut"])
def test_something_else_under_that_name_is_refused(tmp_path, content):
    path = tmp_path / "vit.pth"
    path.write_bytes(content)
    with pytest.raises(RefusedInput, match=r"vit\.pth cannot be read as"):
        load_weights(path)


def test_a_truncated_file_is_refused(tmp_path, state):
    path = tmp_path / "vit.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RefusedInput, match=r"vit\.pth cannot be read.*do that again"):
        load_weights(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": None}, "pos_embed is missing"),
        ({"blocks.0.ls1.gamma": torch.ones(192)}, r"it has blocks\.0\.ls1"),
        ({"dist_token": torch.ones(1, 1, 192)}, "it has dist_token"),
        ({"pos_embed": torch.ones(1, 12, 192)}, "11 patches, which is not a square"),
        ({"pos_embed": torch.ones(3, 3, 192, 1)}, "of an unknown shape"),
    ],
)
def test_other_networks_are_refused(tmp_path, state, changes, message):
    changed = {n: t for n, t in {**state, **changes}.items() if t is not None}
    torch.save(changed, tmp_path / "vit.pth")
    with pytest.raises(RefusedInput, match=message):
        load_weights(tmp_path / "vit.pth")


def test_not_weights_at_all(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RefusedInput, match="holds a list, not weights by name"):
        load_weights(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("options", "pool", "norm_after_pool"),
    [
        ({}, "token", False),
        ({"img_size": (32, 48)}, "token", False),
        ({"num_classes": 0}, "token", False),
        ({"no_embed_class": True}, "token", False),
        ({"global_pool": "avg"}, "mean", True),
        ({"global_pool": "avg", "class_token": False}, "mean", True),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "mean", False),
        ({"global_pool": "avg", "fc_norm": False}, "mean", False),
    ],
)
def test_a_timm_model_becomes_the_same_function(options, pool, norm_after_pool):
    torch.manual_seed(0)
    sizes = {"img_size": 48, "depth": 2, "num_classes": 5, **options}
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    weights = weights_of_timm_model(theirs, "timm:test")
    assert weights.architecture.pool == pool
    assert weights.architecture.norm_after_pool is norm_after_pool
    assert weights.card.mean == weights.mean == tuple(theirs.pretrained_cfg["mean"])
    ours, report = model_from_weights(weights)
    assert report.added == report.left_out == report.assumptions == ()
    images = torch.randn(2, 3, *theirs.patch_embed.img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("deit3_small_patch16_224", {}, r"blocks\.0\.ls1\.gamma"),
        ("vit_small_patch14_reg4_dinov2", {}, "reg_token"),
        ("vit_tiny_patch16_224", {"global_pool": "avgmax"}, "pools its tokens by avgmax"),
        ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}, "between its MLPs"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "norm_pre"),
    ],
)
def test_relatives_that_compute_something_else_are_refused(name, options, what):
    theirs = timm.create_model(name, depth=1, **options)
    with pytest.raises(RefusedInput, match=f"relative of the plain Vision Transformer.*{what}"):
        weights_of_timm_model(theirs, f"timm:{name}")


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(RefusedInput, match="no such model; perhaps you meant vit_base_patch"):
        load_weights("timm:vit_bas_patch16_224")


def test_a_model_that_is_no_vit_is_refused(monkeypatch):
    small = timm.create_model("resnet10t")
    monkeypatch.setattr(foreign_weights.timm, "create_model", lambda *_, **__: small)
    with pytest.raises(RefusedInput, match="timm:resnet10t is a ResNet, not a Vision Transformer"):
        load_weights("timm:resnet10t")


def test_offline_is_refused_at_once_with_what_to_do(monkeypatch, tmp_path):
    """A hub whose address cannot be resolved, and an empty cache."""
    constants = foreign_weights.huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(RefusedInput, match=r"cannot be fetched .* copy the cache \(HF_HOME\)"):
        load_weights("timm:vit_tiny_patch16_224")
    assert time.monotonic() - started < 20
