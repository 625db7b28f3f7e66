import logging
from dataclasses import replace

import pytest
import torch

from configs.errors import RefusedInput
from configs.groups import ModelConfig
from data_pipeline.augment import MEAN, STD
from finetune.start import build_start
from models.pos_embed import resize_position_embedding
from models.weights import WeightsCard, save_weights
from models.zoo import Architecture, build_model
from tests.finetune.toy_task import toy_config
from tracking.lineage import ResolvedWeights

ARCHITECTURE = Architecture(
    depth=1, width=32, heads=2, mlp_dim=64, patch_px=4, image_px=(16, 16), num_classes=7
)
CARD_MEAN, CARD_STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model of 16 px and 7 classes with a head that is not zero, saved as pretraining does."""
    model = build_model(ARCHITECTURE, seed=5)
    torch.nn.init.ones_(model.head.weight)
    folder = tmp_path_factory.mktemp("run") / "export"
    return save_weights(folder, model.state_dict(), WeightsCard(ARCHITECTURE, CARD_MEAN, CARD_STD))


def start_from(folder, **changes):
    resolved = ResolvedWeights(folder.parent, {"pretrain.run_id": "abc"})
    config = toy_config(pretrained=str(folder.parent), **changes)
    return build_start(config, resolved, num_classes=3, device_type="cpu")


def test_pretrained_weights_meet_a_zero_head_at_the_new_resolution(pretrained, caplog):
    caplog.set_level(logging.INFO, logger="finetune")
    start = start_from(pretrained, resolution=24)
    before = build_model(ARCHITECTURE, seed=5).state_dict()
    assert start.architecture.image_px == (24, 24) and start.architecture.num_classes == 3
    assert start.weights["head.weight"].shape == (3, 32)
    assert not start.weights["head.weight"].any() and not start.weights["head.bias"].any()
    assert torch.equal(
        start.weights["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"]
    )
    expected = resize_position_embedding(
        before["pos_embed"],
        old_grid=(4, 4),
        new_grid=(6, 6),
        num_prefix_tokens=1,
        method="linear",
    )
    assert torch.equal(start.weights["pos_embed"], expected)
    assert "resized pos_embed" in caplog.text
    assert "left out: head.weight, head.bias" in caplog.text


def test_the_position_embedding_is_resized_by_the_chosen_method(pretrained):
    linear = start_from(pretrained, resolution=24)
    bicubic = start_from(pretrained, resolution=24, position_embedding="bicubic")
    assert not torch.equal(linear.weights["pos_embed"], bicubic.weights["pos_embed"])


def test_normalisation_and_origin_come_with_the_weights(pretrained):
    start = start_from(pretrained, resolution=None)
    assert (start.mean, start.std) == (CARD_MEAN, CARD_STD)
    assert start.architecture.image_px == (16, 16)
    assert start.tags == {"pretrain.run_id": "abc"}


def test_a_resolution_that_patches_do_not_divide_is_refused(pretrained):
    with pytest.raises(RefusedInput, match=r"--resolution 18 .* 16 or 20"):
        start_from(pretrained, resolution=18)


def test_scratch_depends_on_the_seed_alone():
    def scratch(seed):
        resolved = ResolvedWeights("scratch")
        return build_start(toy_config(seed=seed), resolved, num_classes=3, device_type="cpu")

    first, same, other = scratch(0), scratch(0), scratch(1)
    assert first.sha256 == same.sha256 != other.sha256
    assert (first.mean, first.std, first.source) == (MEAN, STD, "scratch")
    # A copy: training the model leaves the start as it is.
    with torch.no_grad():
        first.model.pos_embed.add_(1)
    assert not torch.equal(first.model.pos_embed, first.weights["pos_embed"])


def test_a_pre_logits_layer_stays_behind_and_blocks_run_again(tmp_path):
    architecture = replace(ARCHITECTURE, pre_logits=True)
    model = build_model(architecture, seed=5)
    folder = save_weights(tmp_path / "export", model.state_dict(), WeightsCard(architecture))
    chosen = ModelConfig(checkpoint_blocks=1)
    start = start_from(folder, model=chosen)
    assert not start.architecture.pre_logits
    assert not any(name.startswith("pre_logits") for name in start.weights)
    assert start.model.blocks[0].recompute
