"""The memory model of weights, gradients and optimizer against what two real ranks hold."""

import pytest

from pretrain.state_memory import checkpoint_bytes, state_memory
from tests.integration.pretrain_processes import ROOT, options, read_json, run_ranks, tiny_shards
from tests.pretrain.live_state import OPTIONS

COUNTER = ROOT / "tests" / "integration" / "count_state.py"
RANKS = 2


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
    ids=lambda value: str(value),
)
def test_two_ranks_hold_what_the_model_says(stage, precision, tmp_path):
    run_dir = tmp_path / "run"
    given = {
        **OPTIONS,
        "data.train": tiny_shards(tmp_path / "train", (33, 27), seed=0),
        "run-dir": run_dir,
        "zero.stage": stage,
        "precision": precision,
    }
    ended = run_ranks(RANKS, options(given), script=COUNTER)
    assert ended.codes == [0, 0], ended.texts
    for rank in range(RANKS):
        counted = read_json(run_dir / f"counted-{rank}.json")
        sizes = counted["sizes"]
        told = state_memory(
            sizes, stage=stage, world_size=RANKS, precision=precision, zero_options={}
        )
        assert counted["weights"] == pytest.approx(told.weights, rel=0.1)
        assert counted["optimizer"] == pytest.approx(told.optimizer, rel=0.1)
        assert counted["gradients"] == pytest.approx(told.gradients, rel=0.1)
        files = checkpoint_bytes(sum(sizes))
        assert counted["checkpoint"] == pytest.approx(files, rel=0.1)
        if stage == 3:
            bucket = 500_000_000
            gathered = told.backward_buffers - bucket * 2
            assert counted["gathered"] == pytest.approx(gathered, rel=0.1)
        else:
            assert counted["gathered"] == 0
