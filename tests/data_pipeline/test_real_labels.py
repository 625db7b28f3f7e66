"""ReaL labels: `real.json` beside the validation shards of ImageNet-1k."""

import json

import numpy as np
import pytest
import torch

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.augment import EvalTransform
from data_pipeline.build import build_dataset
from data_pipeline.index import open_dataset
from data_pipeline.loader import EvalLoader
from data_pipeline.real_labels import read_real_labels
from data_pipeline.subset import class_images
from tests.data_pipeline.archive_layouts import imagenet1k
from tests.data_pipeline.sample_label_sets import label_set_dataset
from tests.data_pipeline.sample_shards import plain_dataset

# For the five validation images in the order of their names, whose own classes are 1, 2, 0, 2, 0.
LISTS = [[1], [0, 2], [], [2, 1, 0], [1]]


@pytest.fixture
def val(tmp_path):
    """The official archive, shuffled over two shards."""
    root = imagenet1k(tmp_path / "in")
    build_dataset("imagenet-1k", root, "val", tmp_path / "val", workers=1, shard_images=3)
    return open_dataset(tmp_path / "val")


def written(tmp_path, content):
    path = tmp_path / "real.json"
    path.write_text(json.dumps(content))
    return path


def read(tmp_path, content, dataset):
    return read_real_labels(written(tmp_path, content), dataset, "data.val_real_labels")


def test_each_image_has_its_list_though_shards_are_shuffled(val, tmp_path):
    real = read(tmp_path, LISTS, val)
    assert val.source_row.tolist() != sorted(val.source_row.tolist())
    accepted = [sorted(set(row) - {-1}) for row in real.accepted.tolist()]
    assert accepted == [sorted(LISTS[image]) for image in val.source_row]
    assert real.num_images == 4


def test_batches_have_the_lists_beside_the_labels(val, tmp_path):
    real = read(tmp_path, LISTS, val)
    loader = EvalLoader(val, transform=EvalTransform((4, 4), None), batch_images=3)
    found, padding = {}, []
    for batch in loader:
        labels = real.beside(batch.labels, batch.rows)
        assert labels.shape == (3, 4) and labels.dtype == torch.int64
        for row, (own, *more) in zip(batch.rows.tolist(), labels.tolist(), strict=True):
            if row < 0:
                padding.append([own, *more])
            else:
                found[int(val.source_row[row])] = (own, sorted(set(more) - {-1}))
    assert found == {
        image: (own, sorted(LISTS[image])) for image, own in enumerate((1, 2, 0, 2, 0))
    }
    assert padding == [[-1] * 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [1]}, "holds no list"),
        ([1, 2, 3, 4, 5], "entry 0 is 1; expected a list of class numbers"),
        ([[1], ["2"], [0], [2], [1]], r"entry 1 is \['2'\]"),
        ([[1], [True], [0], [2], [1]], r"entry 1 is \[True\]"),
        ([[1], [-1], [0], [2], [1]], r"entry 1 is \[-1\]"),
        ([[1], [2], [0], [2], [3]], "has class 3, but .* has 3 classes"),
        (LISTS[:4], "is about 4 images, but .* has an image number 5"),
        ([[]] * 5, "has no class for any image"),
        ([[0], [1], [2], [0], [1]], "own class for 0% of the images"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(val, tmp_path, content, message):
    with pytest.raises(RefusedInput, match=message):
        read(tmp_path, content, val)


def test_a_file_that_is_no_json_is_refused(val, tmp_path):
    for path in (tmp_path / "missing.json", tmp_path / "text.json"):
        if path.stem == "text":
            path.write_text("[[1]")
        with pytest.raises(
            RefusedInput, match=r"data\.val_real_labels = .* cannot be read as JSON"
        ):
            read_real_labels(path, val, "data.val_real_labels")


def test_some_of_the_classes_are_refused(val, tmp_path):
    part = class_images(val, SubsetConfig(classes=("n01000002",)))
    with pytest.raises(RefusedInput, match=r"leave out data\.classes"):
        read(tmp_path, LISTS, part)


def test_label_sets_are_refused(tmp_path):
    with pytest.raises(RefusedInput, match="have label sets already"):
        read(tmp_path, LISTS, label_set_dataset(tmp_path / "sets"))


def test_images_left_out_of_the_shards_do_not_shift_the_list(tmp_path):
    dataset = plain_dataset(tmp_path / "d", (8,))
    part = dataset.select(np.array([1, 2, 5]))
    # As if the other files had not been readable: their numbers in the source are kept.
    assert part.source_row.tolist() == [1, 2, 5]
    lists = [[9], [1], [2], [9], [9], [5, 3], [9], [9]]
    part._base_rows = None
    assert read(tmp_path, lists, part).accepted.tolist() == [[1, -1], [2, -1], [5, 3]]
