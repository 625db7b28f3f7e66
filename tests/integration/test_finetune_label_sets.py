"""Images that show several classes, finetuned on by two processes, scored again by one."""

import json

import pytest

from finetune.evaluate import main as evaluate
from tests.data_pipeline.sample_label_sets import label_set_dataset
from tests.finetune.toy_task import forget_accelerate
from tests.integration.finetune_processes import options, run_ranks
from tests.integration.pretrain_processes import read_json

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_two_processes_finetune_on_label_sets(tmp_path, capsys):
    """Neither the 10 validation images nor the 25 test images fill the batches of two processes."""
    label_set_dataset(tmp_path / "data" / "train", count=40)
    label_set_dataset(tmp_path / "data" / "test", count=25)
    run = tmp_path / "run"
    changes = {
        "task": "shards",
        "data-dir": tmp_path / "data",
        "run-dir": run,
        "images-per-class": "None",
        "validation-fraction": 0.25,
        "learning-rates": (0.01, 0.1),
        "steps": 4,
        "evaluation.batch-images": 4,
    }
    ended = run_ranks(2, options(changes))
    assert ended.codes == [0, 0], ended.texts
    expected = read_json(run / "result.json")
    assert len(expected["validation"]) == 2 and expected["test"]["images"] == 25

    words = ["--weights", run, "--shards", tmp_path / "data" / "test", "--precision", "fp32"]
    capsys.readouterr()
    try:
        assert evaluate([*map(str, words), "--loader.threads", "1", "--json"]) == 0
    finally:
        forget_accelerate()
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["mean_average_precision"] == pytest.approx(
        expected["test"]["mean_average_precision"], abs=1e-9
    )
    assert found["test"]["known_labels"] == expected["test"]["known_labels"] == 66
    assert found["per_class"] == pytest.approx(expected["per_class"], abs=1e-9)
