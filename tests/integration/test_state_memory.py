"""The memory model of weights, gradients and optimizer against what two real ranks hold."""

import pytest

from configs.load import load_config
from configs.schema import PretrainConfig
from pretrain.plan import Ranks, make_plan
from tests.integration.pretrain_processes import ROOT, options, read_json, run_ranks, tiny_shards
from tests.pretrain.live_state import OPTIONS, check_counted

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
        config = load_config(PretrainConfig, options(given), "test").config
        plan = make_plan(config, Ranks(rank, RANKS, rank, RANKS))
        told = check_counted(counted, counted["sizes"], plan, precision)
        if stage == 3:
            bucket = 500_000_000
            gathered = told.backward_buffers - bucket * 2
            assert counted["gathered"] == pytest.approx(gathered, rel=0.1)
        else:
            assert counted["gathered"] == 0
