"""`launch/pretrain.py --validate` with two ranks, on a shipped recipe with small data."""

import pytest

from tests.integration.pretrain_processes import ROOT, run_ranks, tiny_shards

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOY = "--model.width 32 --model.depth 2 --model.heads 2 --model.mlp-dim 32 --model.image-px 32"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The recipe for ViT-B/16 on IN-21k, as it is but for model size, data and run folder."""
    folder = tmp_path_factory.mktemp("validate")
    config = ROOT / "configs" / "pretrain" / "vit_b16_in21k.yaml"
    train = tiny_shards(folder / "train", (33, 27), seed=0)
    return [
        *("--validate", "--config", str(config), *TOY.split()),
        *("--model.num-classes", "4", "--data.eval-resize-px", "48"),
        *("--data.train", str(train), "--data.val", str(train)),
        *("--tracking.uri", f"sqlite:///{folder}/mlflow.db", "--run-dir", str(folder / "run")),
    ]


def test_a_shipped_recipe_is_validated_and_nothing_is_left_behind(words, tmp_path):
    ended = run_ranks(2, words)
    assert ended.codes == [0, 0], ended.texts
    told, other = ended.texts
    for stage in ("options", "data", "model", "two steps", "evaluation", "save", "reload"):
        assert f"passed: {stage} (" in told
    assert "2 ranks on cpu in " in told
    assert "2 x h100-80gb" in told and " at this rate" in told
    assert "GB for checkpoints of" in told
    assert "passed" not in other
    folder = tmp_path.parent
    left = [path.name for path in folder.glob("validate*/*") if path.name != "train"]
    assert left == []


def test_data_that_cannot_be_read_is_told_by_one_rank_before_torch_is_imported(words, tmp_path):
    missing = tmp_path / "gone"
    gone = [*words, "--data.val", str(missing)]
    ended = run_ranks(2, gone, seconds=60)
    assert ended.codes == [2, 2], ended.texts
    assert "error: --validate failed at 'data': " in ended.texts[0]
    assert str(missing) in ended.texts[0]
    assert ended.texts[1] == ""
