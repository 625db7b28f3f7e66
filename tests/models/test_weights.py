"""Our weights files: what is written is read, and what is wrong is refused."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch

from configs.errors import RefusedInput
from models.weights import load_weights, model_from_weights, save_weights, weights_sha256
from models.zoo import Architecture, build_model

IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def export(tmp_path, model, card):
    return save_weights(tmp_path / "run" / "export", model.state_dict(), card)


def edit_card(folder, **changes):
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(record | changes))


def test_read_back_exactly(export, model, card):
    weights = load_weights(export)
    assert weights.card == card
    assert (weights.mean, weights.std) == (card.mean, card.std)
    assert weights.assumptions == ()
    assert all(torch.equal(weights.state_dict[n], t) for n, t in model.state_dict().items())
    again, report = model_from_weights(weights)
    assert torch.equal(again.eval()(IMAGES), model(IMAGES))
    assert report.left_out == report.added == ()


def test_a_run_folder_a_folder_and_a_file_are_the_same(export, model):
    expected = weights_sha256(model.state_dict())
    for reference in (export.parent, export, export / "model.safetensors", str(export)):
        assert weights_sha256(load_weights(reference).state_dict) == expected


def test_plain_timm_loads_it_with_the_cards_arguments(export, model):
    arguments = json.loads((export / "model.json").read_text())["timm_arguments"]
    plain = timm.create_model("vit_base_patch16_224", **arguments).eval()
    plain.load_state_dict(safetensors.torch.load_file(export / "model.safetensors"), strict=True)
    assert torch.equal(plain(IMAGES), model(IMAGES))


def test_timm_reads_the_file_itself(export, model):
    arguments = json.loads((export / "model.json").read_text())["timm_arguments"]
    file = str(export / "model.safetensors")
    plain = timm.create_model("vit_base_patch16_224", checkpoint_path=file, **arguments).eval()
    assert torch.equal(plain(IMAGES), model(IMAGES))


def test_a_size_of_the_table_loads_into_timms_name(tmp_path, card):
    tiny = Architecture(12, 192, 3, 768, 16, (224, 224), 10)
    save_weights(tmp_path, build_model(tiny, seed=0).state_dict(), replace(card, architecture=tiny))
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    plain.load_state_dict(load_weights(tmp_path).state_dict, strict=True)


def test_the_card_says_what_the_file_is(export):
    record = json.loads((export / "model.json").read_text())
    assert record["format"] == "vitrain weights" and record["format_version"] == 1
    assert record["architecture"]["image_px"] == [16, 24]
    assert record["normalisation"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    assert record["classes"][1] == "bär"
    assert (record["data_digest"], record["commit"]) == ("d" * 64, "c" * 40)
    assert record["extra"] == {"run_id": "r1", "steps": 7}


def test_half_precision_is_written_as_fp32(tmp_path, model, card):
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    weights = load_weights(save_weights(tmp_path / "w", state, card))
    assert {tensor.dtype for tensor in weights.state_dict.values()} == {torch.float32}


def test_saving_again_replaces_and_leaves_nothing_beside(export, model, card):
    model.pos_embed.data += 1
    save_weights(export, model.state_dict(), replace(card, commit="new"))
    weights = load_weights(export)
    assert weights.card.commit == "new"
    assert torch.equal(weights.state_dict["pos_embed"], model.pos_embed)
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_a_failure_while_saving_leaves_the_old_weights(export, model, card, monkeypatch):
    def disk_is_full(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", disk_is_full)
        with pytest.raises(OSError, match="no space left"):
            save_weights(export, model.state_dict(), replace(card, commit="new"))
    assert load_weights(export).card == card
    save_weights(export, model.state_dict(), replace(card, commit="newer"))
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_the_folder_appears_only_when_it_is_whole(tmp_path, model, card, monkeypatch):
    renamed = []
    rename = os.rename
    monkeypatch.setattr(
        os, "rename", lambda old, new: (renamed.append(sorted(os.listdir(old))), rename(old, new))
    )
    save_weights(tmp_path / "export", model.state_dict(), card)
    assert renamed == [["model.json", "model.safetensors"]]


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors cannot be read as safetensors"),
        (flip_a_bit, r"model\.safetensors is damaged.*digest differs"),
        (
            lambda f: (f / "model.safetensors").write_text("not found"),
            r"model\.safetensors cannot be read as safetensors",
        ),
        (lambda f: (f / "model.json").write_text('{"form'), r"model\.json cannot be read"),
        (lambda f: edit_card(f, format="other"), r"model\.json is not a weights card"),
        (lambda f: edit_card(f, format_version=2), r"version 2, .* up to 1; use a newer vitrain"),
        (lambda f: edit_card(f, architecture={"depth": 3}), r"model\.json cannot be read"),
        (lambda f: edit_card(f, normalisation={}), r"model\.json cannot be read.*mean"),
    ],
)
def test_damage_is_refused_naming_the_file(export, damage, message):
    damage(export)
    with pytest.raises(RefusedInput, match=message):
        load_weights(export)


def test_without_a_card_the_architecture_is_concluded_and_stated(tmp_path, card):
    tiny = Architecture(1, 192, 3, 768, 4, (20, 20), 5)
    state = build_model(tiny, seed=0).state_dict()
    save_weights(tmp_path / "w", state, replace(card, architecture=tiny))
    (tmp_path / "w" / "model.json").unlink()
    weights = load_weights(tmp_path / "w")
    assert weights.architecture == tiny and weights.card is None
    assert weights.assumptions == (
        "3 attention heads, as in the size table for width 192",
        "a square grid of 5x5 patches, from 25 positions",
        "that the head sees the class token",
    )


def test_an_unknown_width_without_a_card_is_refused(export):
    (export / "model.json").unlink()
    with pytest.raises(RefusedInput, match=r"width 32 .* no row of the size table"):
        load_weights(export)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(RefusedInput, match="no such file or folder"):
        load_weights(tmp_path / "missing.safetensors")
    with pytest.raises(RefusedInput, match=r"holds no model\.safetensors"):
        load_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RefusedInput, match="no exported weights yet"):
        load_weights(tmp_path)
    (tmp_path / "weights.h5").write_text("")
    with pytest.raises(RefusedInput, match=r"unknown kind of file '\.h5' \(known: \.safetensors"):
        load_weights(tmp_path / "weights.h5")


def test_the_digest_is_of_names_shapes_and_numbers(model):
    state = model.state_dict()
    expected = weights_sha256(state)
    assert weights_sha256(dict(reversed(state.items()))) == expected
    assert weights_sha256({n: t.clone().double() for n, t in state.items()}) == expected
    renamed = {n.replace("head.bias", "head.bios"): t for n, t in state.items()}
    reshaped = state | {"cls_token": state["cls_token"].reshape(1, -1)}
    changed = state | {"head.bias": state["head.bias"] + 1e-7}
    for other in (renamed, reshaped, changed):
        assert weights_sha256(other) != expected


def test_a_copied_export_is_whole(export, tmp_path):
    shutil.copytree(export, tmp_path / "elsewhere")
    assert load_weights(tmp_path / "elsewhere").card == load_weights(export).card
