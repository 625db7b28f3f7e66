"""The memory model of activations against the tensors that a real forward pass saves."""

import pytest
import torch

from configs.load import load_config
from configs.schema import PretrainConfig
from models.vit import checkpoint_blocks
from models.zoo import Architecture, build_model, fuse_attention
from pretrain.activation_memory import Passes, activation_memory, probe_step
from training.losses import soft_targets, softmax_cross_entropy

BATCH = 2
CLASSES = 1000


def passes_of(size, *, checkpointed=0, precision="fp32", **options):
    words = [word for name, value in options.items() for word in (f"--model.{name}", str(value))]
    config = load_config(PretrainConfig, ["--model.size", size, *words], "test").config
    architecture = Architecture.from_config(config.model, CLASSES)
    return Passes(config, architecture, precision, checkpointed)


def saved_on_cpu(passes, fused) -> int:
    """Bytes that autograd's own hooks see saved, weights left out."""
    model = build_model(passes.architecture)
    checkpoint_blocks(model, passes.checkpoint_blocks)
    fuse_attention(model, fused)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    targets = soft_targets(torch.zeros(BATCH, dtype=torch.int64), CLASSES)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = softmax_cross_entropy(model(torch.zeros(BATCH, 3, 224, 224)), targets)
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("checkpointed", [0, 1, 3])
@pytest.mark.parametrize("size", ["ti", "s", "b"])
def test_saved_tensors_are_those_of_a_real_forward_pass(size, checkpointed):
    passes = passes_of(size, checkpointed=checkpointed)
    told = probe_step(passes, micro_images=BATCH, device="meta", as_on_gpu=True)
    assert told.saved == pytest.approx(saved_on_cpu(passes, fused=True), rel=0.1)


@pytest.mark.parametrize("checkpointed", [0, 1, 3])
def test_memory_is_linear_in_the_micro_batch(checkpointed):
    passes = passes_of("ti", checkpointed=checkpointed, dropout=0.1)
    memory = activation_memory(passes)
    for micro_images in (8, 64):
        probed = probe_step(passes, micro_images=micro_images, device="meta", as_on_gpu=True)
        assert memory.peak(micro_images) == pytest.approx(probed.peak, rel=0.02)
    assert memory.peak_per_image >= memory.saved_per_image


def test_bf16_takes_about_half():
    full, half = (activation_memory(passes_of("s", precision=p)) for p in ("fp32", "bf16"))
    assert half.saved_per_image == pytest.approx(full.saved_per_image / 2, rel=0.1)


def test_blocks_keep_sixteen_widths_a_token():
    """Counted by hand: both norms' inputs and outputs, query, key, value and attention's output,
    and the MLP's hidden values (4 widths) before and after GELU."""
    passes = passes_of("b", precision="bf16")
    architecture = passes.architecture
    values = (2 + 2 + 4 + 8) * architecture.width
    blocks = architecture.depth * architecture.num_tokens * values * 2
    told = activation_memory(passes).saved_per_image
    assert blocks < told < 1.1 * blocks
