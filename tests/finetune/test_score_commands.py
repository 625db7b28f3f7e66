"""`finetune.evaluate` and `finetune.few_shot` against what finetuning and scikit-learn say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.errors import RefusedInput
from configs.evaluation import EvaluateConfig
from data_pipeline.augment import SquareTransform, normalise
from data_pipeline.index import open_dataset
from data_pipeline.loader import EvalLoader
from finetune.evaluate import main as evaluate
from finetune.evaluation import _prepare
from finetune.few_shot import main as few_shot
from finetune.task_data import prepare_shards
from finetune.transfer import transfer
from models.weights import load_weights, model_from_weights
from tests.finetune.toy_task import CLASSES, toy_config

COMMON = ("--precision", "fp32", "--loader.threads", "1", "--tracking.no-enabled")


@pytest.fixture(scope="module")
def finetuned(toy_folder, tmp_path_factory):
    """Run folder of a transfer of the toy task, not finished learning."""
    run = tmp_path_factory.mktemp("finetuned") / "run"
    config = toy_config(data_dir=toy_folder, run_dir=run, steps=4, learning_rates=(0.02,))
    assert transfer(config) == 0
    return run


def task_words(toy_folder, weights):
    return ["--weights", str(weights), "--task", "image-folder", "--data-dir", str(toy_folder)]


def json_of(command, words, capsys):
    capsys.readouterr()
    assert command([*words, *COMMON, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluating_gives_what_the_transfer_scored(finetuned, toy_folder, tmp_path, capsys):
    expected = json.loads((finetuned / "result.json").read_text())
    test = prepare_shards("image-folder", toy_folder)[1]
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[0, 1, 2]] * 10 + [[]] * 5))
    words = ["--weights", str(finetuned / "export"), "--shards", str(test), "--batch-images", "4"]
    found = json_of(evaluate, [*words, "--real-labels", str(real)], capsys)
    assert (found["test"].pop("real_top1"), found["test"].pop("real_images")) == (1.0, 10)
    assert found["test"].pop("loss") == pytest.approx(expected["test"].pop("loss"), rel=1e-5)
    assert found["test"] == expected["test"] and found["test"]["images"] == 15
    assert found["per_class"] == expected["per_class"]
    assert found["weights"]["resolution"] == [8, 8]


def test_a_result_is_kept_once(finetuned, toy_folder, tmp_path, capsys):
    run = tmp_path / "scored"
    words = [*task_words(toy_folder, finetuned), *COMMON, "--run-dir", str(run)]
    assert evaluate(words) == 0
    assert "test: top-1" in capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line)["values"] for line in (run / "metrics.jsonl").open()]
    assert rows[0]["test/top1"] == result["test"]["top1"]
    assert evaluate(words) == 0
    assert "scored already" in capsys.readouterr().out
    assert json_of(evaluate, words, capsys) == result
    with pytest.raises(RefusedInput, match="resolution was none, now 12"):
        evaluate([*words, "--resolution", "12"])
    with pytest.raises(RefusedInput, match="holds a run of finetune"):
        evaluate([*words, "--run-dir", str(finetuned)])


def test_a_head_for_other_classes_is_refused(finetuned):
    weights, config = load_weights(finetuned), EvaluateConfig(weights="w")

    def prepare(*classes):
        dataset = SimpleNamespace(num_classes=len(classes), classes=classes, place="here")
        return _prepare(config, weights, dataset)

    assert prepare(*CLASSES) is None
    with pytest.raises(RefusedInput, match=r"head for 3 classes, here has 4\. Only a head"):
        prepare(*CLASSES, "white")
    with pytest.raises(RefusedInput, match="number 1 is 'green' there and 'white' in here"):
        prepare("blue", "white", "red")


def test_weights_that_are_not_there_are_refused_at_once():
    with pytest.raises(RefusedInput, match="--weights is not set"):
        evaluate([])
    with pytest.raises(RefusedInput, match=r"--weights none/such: there is no such file"):
        few_shot(["--weights", "none/such"])


def reference_top1(run, folders, rows):
    """scikit-learn's Ridge on the features of plain timm."""
    from sklearn.linear_model import Ridge

    model, _ = model_from_weights(load_weights(run))
    sets = [open_dataset(folder) for folder in folders]
    features, labels = [], []
    for dataset in (sets[0].select(rows), sets[1]):
        transform = SquareTransform((8, 8))
        (batch,) = EvalLoader(dataset, transform=transform, batch_images=dataset.num_images)
        with torch.no_grad():
            tokens = model.eval().forward_features(normalise(batch.images))
        features.append(model.forward_head(tokens, pre_logits=True).detach().double().numpy())
        labels.append(batch.labels.numpy())
    mean, deviation = features[0].mean(0), features[0].std(0) + 1e-5
    train, test = (
        np.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=100.0) for x in features
    )
    ridge = Ridge(alpha=1024.0, fit_intercept=False).fit(train, 2.0 * np.eye(3)[labels[0]] - 1.0)
    return (ridge.predict(test).argmax(1) == labels[1]).mean()


def test_probes_are_those_of_a_reference_and_kept(finetuned, toy_folder, tmp_path, capsys):
    from data_pipeline.subset import few_of_each_class

    words = [*task_words(toy_folder, finetuned), "--shots", "1", "5", "25", "--seeds", "3", "4"]
    found = json_of(few_shot, words, capsys)
    folders = prepare_shards("image-folder", toy_folder)
    whole = open_dataset(folders[0])
    assert list(found["few_shot"]) == ["1", "5"]  # there are 20 images of each class
    for shots, scores in found["few_shot"].items():
        expected = [
            reference_top1(finetuned, folders, few_of_each_class(whole, int(shots), seed))
            for seed in (3, 4)
        ]
        assert scores["top1_by_seed"] == pytest.approx(expected, abs=1e-12)
        assert scores["top1"] == pytest.approx(np.mean(expected), abs=1e-12)
        assert scores["top1_std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-12)
    run = tmp_path / "runs" / "few-shot-image-folder-run"
    rows = [json.loads(line)["values"] for line in (run / "metrics.jsonl").open()]
    assert rows[0]["few_shot/image-folder/5_shot_top1"] == found["few_shot"]["5"]["top1"]
    assert len(CLASSES) == 3 and found["test_images"] == 15
