"""Transfer to images that show several classes: the masked loss, and average precision as score."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.augment import EvalTransform, normalise
from data_pipeline.dataset import ShardedDataset
from data_pipeline.index import open_dataset
from data_pipeline.loader import EvalLoader
from finetune.evaluate import main as evaluate
from finetune.step import _loss
from finetune.task_data import open_task_data, prepare_shards
from finetune.transfer import transfer
from models.weights import WeightsCard, load_weights, model_from_weights, save_weights
from models.zoo import Architecture, build_model
from tests.data_pipeline.sample_label_sets import label_set_dataset
from tests.finetune.toy_task import toy_config
from training.losses import masked_sigmoid_cross_entropy
from training.mixup import Mixup, Pairing

ARCHITECTURE = Architecture(
    depth=1, width=32, heads=2, mlp_dim=64, patch_px=4, image_px=(8, 8), num_classes=4
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Data folder of the task "shards": 40 training and 24 test images of 4 classes, as sets."""
    folder = tmp_path_factory.mktemp("sets")
    label_set_dataset(folder / "train", count=40)
    label_set_dataset(folder / "test", count=24)
    return folder


def parts_of(sets, **options):
    options = {"validation_fraction": 0.25, "subset": SubsetConfig(), "seed": 0, **options}
    return open_task_data((sets / "train", sets / "test"), **options)


def average_precision_of(run, images):
    """scikit-learn's, of each class over the images it is known of, by the exported weights."""
    model, _ = model_from_weights(load_weights(run))
    transform = EvalTransform((8, 8), round(8 * 7 / 6))
    (batch,) = EvalLoader(images, transform=transform, batch_images=images.num_images)
    with torch.no_grad():
        logits = model.eval()(normalise(batch.images)).T.numpy()
    labels = batch.labels.T.numpy()
    return np.array(
        [
            average_precision_score(truth[truth >= 0], scores[truth >= 0])
            for truth, scores in zip(labels, logits, strict=True)
        ]
    )


def test_a_transfer_is_chosen_and_scored_by_average_precision(sets, tmp_path):
    config = toy_config(
        task="shards",
        data_dir=sets,
        run_dir=tmp_path / "run",
        steps=4,
        learning_rates=(0.01, 0.1),
        validation_fraction=0.25,
        evaluation={"batch_images": 7},
    )
    assert transfer(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    expected = average_precision_of(tmp_path / "run", open_dataset(sets / "test"))
    assert list(result["per_class"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
    assert result["test"]["mean_average_precision"] == pytest.approx(
        float(expected.mean()), rel=1e-4
    )
    assert result["test"]["images"] == 24 and "top1" not in result["test"]
    best = max(result["validation"].values())
    assert result["validation"][f"{result['learning_rate']:g}"] == best
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    logged = {name for row in rows for name in row["values"]}
    assert {"validation/mean_average_precision", "test/mean_average_precision"} <= logged
    events = (tmp_path / "run" / "tracking" / "events.jsonl").read_text()
    assert '"score":"mean_average_precision"' in events.replace(" ", "")


def test_the_loss_leaves_out_what_is_not_known():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.randint(-1, 2, (6, 4), generator=generator).to(torch.int8)
    found = _loss(logits, labels, Mixup(1.0, Pairing(6, 1)))
    torch.testing.assert_close(found, masked_sigmoid_cross_entropy(logits, labels))


def test_validation_images_are_held_out_with_their_sets(sets):
    whole, data = open_dataset(sets / "train"), parts_of(sets)
    assert (data.train.num_images, data.validation.num_images) == (30, 10)
    row_of = {number: row for row, number in enumerate(whole.source_row.tolist())}
    for row, number in enumerate(data.validation.source_row.tolist()):
        assert data.validation.label_sets.of_row(row) == whole.label_sets.of_row(row_of[number])


def test_images_of_another_kind_are_refused(sets, toy_folder, tmp_path):
    single, _ = prepare_shards("image-folder", toy_folder)
    (tmp_path / "train").symlink_to(sets / "train")
    (tmp_path / "test").symlink_to(single)
    with pytest.raises(RefusedInput, match=r"train has label sets, .*test one label an image"):
        parts_of(tmp_path)
    with pytest.raises(RefusedInput, match="choose classes when building"):
        parts_of(sets, subset=SubsetConfig(images_per_class=2))


def test_parts_that_show_nothing_are_refused(sets, monkeypatch):
    monkeypatch.setattr(ShardedDataset, "images_per_class", lambda self: np.zeros(4, np.int64))
    with pytest.raises(RefusedInput, match=r"none of the 10 validation images .* raise validation"):
        parts_of(sets)


def test_evaluating_label_sets_gives_average_precision(sets, tmp_path, capsys):
    model = build_model(ARCHITECTURE, seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    classes = tuple(f"class{number}" for number in range(4))
    save_weights(tmp_path / "w", model.state_dict(), WeightsCard(ARCHITECTURE, classes=classes))
    words = ["--weights", str(tmp_path / "w"), "--shards", str(sets / "test")]
    words += ["--precision", "fp32", "--eval-resize-px", "9", "--batch-images", "10", "--json"]
    capsys.readouterr()
    assert evaluate(words) == 0
    found = json.loads(capsys.readouterr().out)
    expected = average_precision_of(tmp_path / "w", open_dataset(sets / "test"))
    assert list(found["per_class"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
    assert found["test"]["mean_average_precision"] == pytest.approx(
        float(expected.mean()), rel=1e-4
    )
    assert found["test"]["known_labels"] == 64 and "real_top1" not in found["test"]
