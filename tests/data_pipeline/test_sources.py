"""Our readers against torchvision's dataset classes on the same files, and what each refuses."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as reference
from numpy.testing import assert_array_equal
from PIL import Image

from configs.errors import RefusedInput
from data_pipeline.sources import SOURCES, open_source
from data_pipeline.sources import source as source_module
from tests.data_pipeline import official_layouts as layouts


def listed(source) -> list[tuple[int, bytes]]:
    """Label and file of every image, in the source's order."""
    images = source.images(np.arange(len(source.labels)))
    return [(int(label), image.read()) for label, image in zip(source.labels, images, strict=True)]


def same_pixels(data: bytes, image: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), image))


def assert_agrees(source, dataset) -> None:
    """Same labels, in the same order, and images that decode to the same pixels."""
    ours = listed(source)
    assert len(ours) == len(dataset) > 0
    for (label, data), (image, expected_label) in zip(ours, dataset, strict=True):
        assert label == expected_label
        assert same_pixels(data, image)


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_folder_agrees_with_torchvision(tmp_path, split):
    root = layouts.image_folder(tmp_path / "photos")
    source = open_source("image-folder", root, split)
    dataset = reference.ImageFolder(root / split)
    assert_agrees(source, dataset)
    assert list(source.classes) == dataset.classes
    assert source.name == "photos"
    paths = [image.path for image in source.images(np.arange(len(source.labels)))]
    assert paths == [path for path, _ in dataset.samples]


def test_image_folder_without_splits(tmp_path):
    root = layouts.image_folder(tmp_path) / "train"
    source = open_source("image-folder", root, "everything")
    assert_agrees(source, reference.ImageFolder(root))
    assert source.split == "everything"


def test_image_folder_numbers_classes_by_the_training_folder(tmp_path):
    root = layouts.image_folder(tmp_path)
    os.remove(root / "val/class0/0.jpg")
    os.rmdir(root / "val/class0")
    source = open_source("image-folder", root, "val")
    assert source.classes == ("class0", "class1", "class2")
    assert source.labels.tolist() == [1, 2]


def test_tiny_imagenet_train_agrees_with_torchvision(tmp_path):
    layouts.tiny_imagenet(tmp_path)
    source = open_source("tiny-imagenet", tmp_path, "train")
    train = tmp_path / "tiny-imagenet-200/train"
    # ImageFolder goes by extension, so it passes over the text files of the boxes.
    assert_agrees(source, reference.ImageFolder(train))
    assert source.classes == ("n01 goldfish, Carassius", "n02 toad", "n03")


def test_tiny_imagenet_val_follows_its_annotations(tmp_path):
    layouts.tiny_imagenet(tmp_path)
    root = tmp_path / "tiny-imagenet-200"
    source = open_source("tiny-imagenet", root, "val")
    assert source.labels.tolist() == [2, 0, 1, 0]
    files = [(root / f"val/images/val_{number}.JPEG").read_bytes() for number in range(4)]
    assert [data for _, data in listed(source)] == files
    assert source.classes == open_source("tiny-imagenet", tmp_path, "train").classes


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_pets_agree_with_torchvision(tmp_path, split):
    source = open_source("pets", layouts.pets(tmp_path), split)
    dataset = reference.OxfordIIITPet(tmp_path, split=split)
    assert_agrees(source, dataset)
    assert list(source.classes) == dataset.classes == ["Abyssinian", "American Bulldog"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_flowers_agree_with_torchvision(tmp_path, split, monkeypatch):
    layouts.flowers(tmp_path)
    # torchvision compares the digests of the .mat files with the official, uncut ones.
    monkeypatch.setattr(reference.flowers102, "check_integrity", lambda *_: True)
    source = open_source("flowers102", tmp_path, split)
    assert_agrees(source, reference.Flowers102(tmp_path, split=split))
    assert list(source.classes) == reference.Flowers102.classes


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_agrees_with_torchvision(tmp_path, name, split, monkeypatch):
    monkeypatch.setattr(reference.cifar, "check_integrity", lambda *_: True)
    getattr(layouts, name)(tmp_path)
    source = open_source(name, tmp_path, split)
    dataset = getattr(reference, name.upper())(tmp_path, train=split == "train")
    assert_agrees(source, dataset)
    assert list(source.classes) == dataset.classes


def test_digits_have_a_fixed_split():
    from sklearn.datasets import load_digits

    train, test = (open_source("digits", None, split) for split in ("train", "test"))
    assert (len(train.labels), len(test.labels)) == (1000, 797)
    counts = np.bincount(load_digits().target)
    shares = np.bincount(train.labels) / counts
    assert shares.min() > 0.54 and shares.max() < 0.57
    # The same for ever: the first images of either part, as numbers of scikit-learn's set.
    pixels = np.rint(load_digits().images * 255 / 16)
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for _, data in listed(train)[:20]]
    numbers = [int(np.flatnonzero((pixels == image).all(axis=(1, 2)))[0]) for image in decoded]
    assert numbers == [0, 2, 3, 4, 6, 8, 12, 14, 15, 16, 17, 20, 22, 23, 24, 28, 29, 30, 31, 33]
    assert decoded[0].shape == (8, 8) and decoded[0].dtype == np.uint8
    together = np.concatenate([train.pixels, test.pixels]).reshape(1797, -1)
    assert_array_equal(np.sort(together, axis=0), np.sort(pixels.reshape(1797, -1), axis=0))


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("should-not-exist",)


def test_a_forged_cifar_batch_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = layouts.cifar10(tmp_path) / "cifar-10-batches-py"
    (root / "data_batch_3").write_bytes(pickle.dumps({"data": _RunsCode()}))
    with pytest.raises(RefusedInput, match=r"data_batch_3 is not a CIFAR batch.*mkdir"):
        open_source("cifar10", tmp_path, "train")
    assert not (tmp_path / "should-not-exist").exists()


CIFAR_DAMAGE = {
    "garbage": (b"no pickle", "is not a CIFAR batch"),
    "empty": (b"", "is not a CIFAR batch"),
    "list": (pickle.dumps([1]), "holds a list"),
    "no labels": (pickle.dumps({"data": 1}), "has no 'labels'"),
    "wrong shape": (
        pickle.dumps({"labels": [1], "data": np.zeros((1, 7), np.uint8)}),
        r"uint8 array of shape \(1, 3072\)",
    ),
    "wrong label": (
        pickle.dumps({"labels": [10], "data": np.zeros((1, 3072), np.uint8)}),
        "numbers 0..9",
    ),
}


@pytest.mark.parametrize("damage", CIFAR_DAMAGE)
def test_damaged_cifar_is_refused(tmp_path, damage):
    data, message = CIFAR_DAMAGE[damage]
    root = layouts.cifar10(tmp_path) / "cifar-10-batches-py"
    (root / "test_batch").write_bytes(data)
    with pytest.raises(RefusedInput, match=message):
        open_source("cifar10", tmp_path, "test")


MISSING = [
    ("cifar10", "cifar10", "train", "cifar-10-batches-py/data_batch_4"),
    ("cifar10", "cifar10", "test", "cifar-10-batches-py/batches.meta"),
    ("cifar100", "cifar100", "test", "cifar-100-python/test"),
    ("pets", "pets", "test", "oxford-iiit-pet/annotations/test.txt"),
    ("flowers102", "flowers", "val", "flowers-102/setid.mat"),
    ("tiny-imagenet", "tiny_imagenet", "val", "tiny-imagenet-200/val/val_annotations.txt"),
    ("tiny-imagenet", "tiny_imagenet", "train", "tiny-imagenet-200/words.txt"),
]


@pytest.mark.parametrize(("name", "layout", "split", "missing"), MISSING)
def test_a_missing_file_is_named(tmp_path, name, layout, split, missing):
    getattr(layouts, layout)(tmp_path)
    os.remove(tmp_path / missing)
    with pytest.raises(RefusedInput) as refused:
        open_source(name, tmp_path, split)
    assert f"{tmp_path / missing} is missing" in str(refused.value)
    assert "give" in str(refused.value)


@pytest.mark.parametrize("name", [name for name, kind in SOURCES.items() if kind.needs_input])
def test_a_wrong_input_folder_is_refused(tmp_path, name):
    split = (*SOURCES[name].splits, "train")[0]
    with pytest.raises(RefusedInput, match="not a folder"):
        open_source(name, tmp_path / "nowhere", split)
    with pytest.raises(RefusedInput, match=r"is missing|no class folders"):
        open_source(name, tmp_path, split)
    with pytest.raises(RefusedInput, match="--input"):
        open_source(name, None, split)


@pytest.mark.parametrize(
    ("name", "input_folder", "split", "message"),
    [
        ("imagenet", None, "train", "choose one of image-folder"),
        ("cifar10", Path("."), "val", "has the splits train, test"),
        ("digits", Path("."), "train", "needs no files"),
        ("image-folder", Path("."), "../etc", "letters, digits"),
    ],
)
def test_impossible_choices_are_refused(name, input_folder, split, message):
    with pytest.raises(RefusedInput, match=message):
        open_source(name, input_folder, split)


def test_image_folder_refusals(tmp_path):
    root = layouts.image_folder(tmp_path)
    with pytest.raises(RefusedInput, match=r"test does not exist; .* has the splits train, val"):
        open_source("image-folder", root, "test")
    layouts.write(root / "val/new/0.jpg", b"")
    with pytest.raises(RefusedInput, match=r"class 'new' \(1 such\) is not in .*train"):
        open_source("image-folder", root, "val")
    (tmp_path / "empty/class").mkdir(parents=True)
    with pytest.raises(RefusedInput, match="holds no files"):
        open_source("image-folder", tmp_path / "empty", "all")


BAD_LINES = [
    ("tiny_imagenet", "tiny-imagenet", "val", "tiny-imagenet-200/val/val_annotations.txt", "x"),
    ("pets", "pets", "test", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_1 0 1 1"),
    ("pets", "pets", "test", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_1"),
]


@pytest.mark.parametrize(("layout", "name", "split", "file", "line"), BAD_LINES)
def test_a_bad_annotation_line_is_named(tmp_path, layout, name, split, file, line):
    path = getattr(layouts, layout)(tmp_path) / file
    number = len(path.read_text().splitlines()) + 1
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RefusedInput, match=f"{path.name}, line {number}: '{line}'"):
        open_source(name, tmp_path, split)


def test_damaged_mat_files_are_refused(tmp_path):
    import scipy.io

    root = layouts.flowers(tmp_path) / "flowers-102"
    scipy.io.savemat(root / "setid.mat", {"trnid": [[11]], "valid": [[1]]})
    with pytest.raises(
        RefusedInput, match=r"names image 11, imagelabels.mat has labels of 1\.\.10"
    ):
        open_source("flowers102", tmp_path, "train")
    with pytest.raises(RefusedInput, match="has no variable 'tstid'"):
        open_source("flowers102", tmp_path, "test")
    (root / "imagelabels.mat").write_bytes(b"MATLAB it is not")
    with pytest.raises(RefusedInput, match="cannot be read as a MATLAB file"):
        open_source("flowers102", tmp_path, "val")


def test_size_bounds_hold(tmp_path):
    for source in (
        open_source("image-folder", layouts.image_folder(tmp_path / "a"), "train"),
        open_source("cifar10", layouts.cifar10(tmp_path / "b"), "train"),
        open_source("digits", None, "test"),
    ):
        sizes = np.array([len(data) for _, data in listed(source)])
        assert (sizes <= source.size_bounds()).all()
        assert source.size_bounds().shape == source.labels.shape


def test_a_fingerprint_does_not_depend_on_how_many_names_are_hashed_at_once(tmp_path, monkeypatch):
    files = [f"{name}.jpg" for name in "vwxyz"]
    labels = np.array([0, 1, 1, 0, 1])
    files_source = source_module.FileSource("name", "train", ("a", "b"), labels, tmp_path, files)
    whole = hashlib.sha256(b"a\0b\0\0v.jpg\0w.jpg\0x.jpg\0y.jpg\0z.jpg")
    whole.update(labels.astype("<i8").tobytes())
    for count in (1, 2, 5, 6):
        monkeypatch.setattr(source_module, "_NAMES_HASHED_AT_ONCE", count)
        assert files_source.fingerprint() == whole.hexdigest()
