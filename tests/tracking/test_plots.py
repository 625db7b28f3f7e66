import json

import numpy as np
import pytest
from PIL import Image

from tracking.plots import confusion_matrix_png, curves_png


@pytest.mark.parametrize("num_classes", [2, 10, 40, 200])
def test_confusion_matrices_of_any_size_are_drawn(tmp_path, num_classes):
    generator = np.random.default_rng(0)
    confusion = generator.poisson(0.5, (num_classes, num_classes))
    path = confusion_matrix_png(
        confusion, [f"{number} $\\frac$ ä" for number in range(num_classes)], tmp_path / "c.png"
    )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
        # Readable: the matrix alone has at least five pixels for every class.
        assert image.height > 5 * num_classes
        assert image.width < 2500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_a_class_without_images_and_an_empty_matrix_are_no_problem(tmp_path):
    confusion_matrix_png(np.zeros((3, 3)), ["a", "b", "c"], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_a_matrix_that_does_not_fit_the_classes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 2\) for 3 classes"):
        confusion_matrix_png(np.eye(2), ["a", "b", "c"], tmp_path / "c.png")


def test_curves_are_drawn_from_the_journal_whatever_it_holds(tmp_path):
    journal = tmp_path / "metrics.jsonl"
    rows = [
        {"time": 1, "step": 1, "values": {"train/loss": 2.0, "train/lr": 0.1, "odd/thing": 1.0}},
        {"time": 2, "step": 2, "values": {"train/loss": "nan", "validation/top1": 0.5}},
    ]
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    with Image.open(curves_png(journal, tmp_path / "plots" / "curves.png")) as image:
        assert image.width > 1000
    curves_png(tmp_path / "missing.jsonl", tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()
