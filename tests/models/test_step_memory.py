"""What a forward and a backward pass take: the meta device against a CPU that computes."""

from dataclasses import replace

import pytest
import torch

from models.step_memory import LiveBytes, gpu_kernels, measure_step
from models.vit import checkpoint_blocks
from models.zoo import build_model, fuse_attention

BATCH = 3
MEBI = 2**20


def measured(architecture, device, *, fused=False, as_on_gpu=False, checkpointed=0, dropout=0.0):
    model = build_model(architecture, device=device, dropout=dropout)
    checkpoint_blocks(model, checkpointed)
    fuse_attention(model, fused or as_on_gpu)
    shape = (BATCH, 3, *architecture.image_px)
    return measure_step(
        model, lambda: model(torch.zeros(shape, device=device)).sum(), as_on_gpu=as_on_gpu
    )


def test_live_bytes_follow_what_is_made_and_dropped():
    known = torch.zeros(MEBI, dtype=torch.uint8)
    with LiveBytes([known]) as live:
        first = known + 1
        view = first[10:]
        assert (live.now, live.peak) == (MEBI, MEBI)
        known.add_(1)  # in place: nothing is made
        second = torch.cat([first, view])
        assert live.now == 3 * MEBI - 10
        del first
        assert live.now == 3 * MEBI - 10  # the view holds it
        del view
        assert live.now == 2 * MEBI - 10
        del second
    assert (live.now, live.peak) == (0, 3 * MEBI - 10)


@pytest.mark.parametrize("checkpointed", [0, 1, 2])
def test_the_meta_device_makes_what_the_cpu_makes(architecture, checkpointed):
    computed = measured(architecture, "cpu", checkpointed=checkpointed)
    assert measured(architecture, "meta", checkpointed=checkpointed) == computed
    assert computed.peak >= computed.saved > 0


def test_fused_attention_stands_in_for_the_cpus_own(architecture):
    """PyTorch's fused attention on a CPU keeps what FlashAttention keeps on a GPU."""
    computed = measured(architecture, "cpu", fused=True)
    told = measured(architecture, "meta", as_on_gpu=True)
    assert told.saved == computed.saved
    assert told.peak == pytest.approx(computed.peak, rel=0.1)
    assert told.saved < measured(architecture, "meta").saved


def test_recomputing_keeps_less_but_not_nothing(architecture):
    deep = replace(architecture, depth=8)
    plain = measured(deep, "meta", as_on_gpu=True)
    recomputed = measured(deep, "meta", as_on_gpu=True, checkpointed=1)
    half = measured(deep, "meta", as_on_gpu=True, checkpointed=2)
    inputs = 8 * BATCH * deep.num_tokens * deep.width * 4
    assert inputs < recomputed.saved < plain.saved / 3
    assert recomputed.saved < recomputed.peak < plain.peak / 2
    assert half.saved == pytest.approx((plain.saved + recomputed.saved) / 2, rel=0.01)


def test_dropout_on_a_gpu_keeps_a_byte_a_value(architecture):
    without = measured(architecture, "meta", as_on_gpu=True)
    dropped = measured(architecture, "meta", as_on_gpu=True, dropout=0.5)
    tokens = BATCH * architecture.num_tokens
    # After the embedding, and in each block after attention, in the MLP and after it.
    values = architecture.width + architecture.depth * (
        2 * architecture.width + architecture.mlp_dim
    )
    assert dropped.saved - without.saved == tokens * values


def test_the_stand_ins_are_gone_afterwards():
    attention, dropout = (
        torch.nn.functional.scaled_dot_product_attention,
        torch.nn.functional.dropout,
    )
    with pytest.raises(ZeroDivisionError), gpu_kernels():
        assert torch.nn.functional.dropout is not dropout
        1 / 0  # noqa: B018
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert torch.nn.functional.dropout is dropout
