"""In which precision gradients are summed over the ranks, shown by a sum that bf16 cannot hold."""

import pytest

from tests.integration.pretrain_processes import ROOT, options, read_json, run_ranks, tiny_shards

# Where ranks are no power of two, stage 2 divides by their number in bf16 before it sums.
RANKS = 4


@pytest.mark.integration
def test_gradients_are_summed_in_fp32_unless_asked_otherwise(tmp_path):
    """256 + 1 + 1 + 1: in bf16, whose steps are 2 at 256, ones are lost one after the other."""
    given = {
        "data.train": tiny_shards(tmp_path / "train", (9,), seed=0),
        "run-dir": tmp_path / "run",
        "batch.global-images": 8,
        "batch.micro-images": 2,
        "precision": "bf16",
        "model.dropout": 0.0,
    }
    script = ROOT / "tests" / "integration" / "sum_gradients.py"
    ended = run_ranks(RANKS, options(given), script=script)
    assert ended.codes == [0] * RANKS, ended.texts
    for rank in range(RANKS):
        found = read_json(tmp_path / "run" / f"summed-{rank}.json")
        for stage in (1, 2, 3):
            exact, rounded = found[f"{stage} fp32"], found[f"{stage} same"]
            assert exact == [259 / 4] * len(exact)
            assert rounded == pytest.approx([259 / 4] * len(rounded), rel=2**-6)
            assert rounded != exact
