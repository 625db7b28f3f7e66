"""The commands that score weights: two processes come to what one comes to, on every image."""

import json

import pytest
import torch

from finetune.evaluate import main as evaluate
from finetune.few_shot import main as few_shot
from models.weights import WeightsCard, save_weights
from models.zoo import Architecture, build_model
from tests.finetune.toy_task import forget_accelerate
from tests.integration.pretrain_processes import ROOT, read_json, run_ranks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ARCHITECTURE = Architecture(
    depth=2, width=32, heads=2, mlp_dim=64, patch_px=4, image_px=(8, 8), num_classes=10
)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Options that name random weights with a head for the ten digits."""
    folder = tmp_path_factory.mktemp("weights")
    model = build_model(ARCHITECTURE, seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    card = WeightsCard(ARCHITECTURE, classes=tuple(str(number) for number in range(10)))
    save_weights(folder / "export", model.state_dict(), card)
    common = "--task digits --precision fp32 --loader.threads 1 --tracking.no-enabled".split()
    return [*common, "--weights", str(folder), "--data-dir", str(folder / "data")]


@pytest.fixture(autouse=True)
def _accelerate_is_new():
    yield
    forget_accelerate()


def scored_by_two(command, words, run_dir):
    ended = run_ranks(
        2,
        [f"finetune.{command}", *words, "--run-dir", str(run_dir), "--json"],
        script="-m",
        variables={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert ended.codes == [0, 0], ended.texts
    result = read_json(run_dir / "result.json")
    assert json.dumps(result, indent=2) in ended.texts[0]
    return result


def scored_here(command, words, run_dir):
    assert command([*words, "--run-dir", str(run_dir)]) == 0
    return read_json(run_dir / "result.json")


def test_scores_do_not_depend_on_the_number_of_processes(words, tmp_path):
    """The 797 test images divide neither by two nor by the 64 of a batch."""
    one = scored_here(evaluate, words, tmp_path / "e1")
    two = scored_by_two("evaluate", words, tmp_path / "e2")
    assert one["test"].pop("loss") == pytest.approx(two["test"].pop("loss"), rel=1e-6)
    assert one == two and one["test"]["images"] == 797


def test_probes_do_not_depend_on_the_number_of_processes(words, tmp_path):
    one = scored_here(few_shot, words, tmp_path / "f1")
    assert scored_by_two("few_shot", words, tmp_path / "f2") == one
    assert list(one["few_shot"]) == ["1", "5", "10", "25"]
    assert one["few_shot"]["25"]["top1"] > 0.3
