"""ImageNet from its archives, against torchvision's reader and against tarfile."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets.imagenet as reference
from torchvision.datasets import ImageFolder

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset
from data_pipeline.index import open_dataset
from data_pipeline.sources import open_source
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import archive_layouts as layouts
from tests.data_pipeline.official_layouts import hash_of, image_bytes

WORDS = ("n01000002 English setter", "n02000003 Siberian husky")
CLASSES = (*WORDS, "n03000001 kit fox, Vulpes macrotis")


def listed(source) -> list[tuple[str, int, bytes]]:
    """Name in the archive, label and file of every image."""
    images = source.images(np.arange(len(source.labels)))
    return [
        (Path(image.place.name).name, int(label), image.read())
        for label, image in zip(source.labels, images, strict=True)
    ]


@pytest.fixture
def unpacked_by_torchvision(tmp_path, monkeypatch):
    """The folder into which torchvision unpacks train and val; gives the archives' folder."""
    monkeypatch.setattr(reference, "_verify_archive", lambda *_: None)
    root = layouts.imagenet1k(tmp_path / "imagenet")
    reference.parse_devkit_archive(root)
    reference.parse_train_archive(root)
    reference.parse_val_archive(root)
    return root


def test_training_images_are_those_of_torchvision(unpacked_by_torchvision):
    source = open_source("imagenet-1k", unpacked_by_torchvision, "train")
    expected = [
        (Path(path).name, label, Path(path).read_bytes())
        for path, label in ImageFolder(unpacked_by_torchvision / "train").samples
    ]
    assert listed(source) == expected and len(expected) == 9
    assert source.classes == CLASSES


def test_validation_labels_are_those_of_torchvision(unpacked_by_torchvision):
    source = open_source("imagenet-1k", unpacked_by_torchvision.parent, "val")
    theirs = {
        Path(path).name: (label, Path(path).read_bytes())
        for path, label in ImageFolder(unpacked_by_torchvision / "val").samples
    }
    ours = listed(source)
    assert [name for name, _, _ in ours] == sorted(theirs)
    assert {name: (label, data) for name, label, data in ours} == theirs
    assert source.classes == CLASSES


def test_the_devkit_may_be_unpacked(tmp_path):
    root = layouts.imagenet1k(tmp_path)
    packed = open_source("imagenet-1k", root, "val")
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz") as tar:
        tar.extractall(root, filter="data")
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    unpacked = open_source("imagenet-1k", root, "val")
    assert unpacked.labels.tolist() == packed.labels.tolist() == [1, 2, 0, 2, 0]
    assert unpacked.fingerprint() == packed.fingerprint()


def test_imagenet1k_builds_and_verifies(tmp_path):
    root = layouts.imagenet1k(tmp_path / "in")
    build_dataset("imagenet-1k", root, "train", tmp_path / "out", workers=1, shard_images=4)
    dataset = open_dataset(tmp_path / "out")
    files = listed(open_source("imagenet-1k", root, "train"))
    for row, source_row in enumerate(dataset.source_row):
        shard = dataset.shard_path(dataset.shard[row]).read_bytes()
        start = dataset.offset[row]
        assert shard[start : start + dataset.size[row]] == files[source_row][2]
        assert dataset.label[row] == files[source_row][1]
    assert verify_dataset(tmp_path / "out", decode=True, workers=1).problems == ()


def change_archive(root: Path, change: str) -> str:
    """Damage one archive of ImageNet-1k; gives the split that meets it."""
    train = root / "ILSVRC2012_img_train.tar"
    devkit = root / "ILSVRC2012_devkit_t12.tar.gz"
    if change == "no devkit":
        devkit.unlink()
    elif change == "another devkit":
        devkit.write_bytes(layouts.devkit_bytes(truth=(3, 1, 2, 1)))
    elif change == "an inner node as truth":
        devkit.write_bytes(layouts.devkit_bytes(truth=(3, 1, 2, 1, 4)))
    elif change == "a devkit without lists":
        devkit.write_bytes(layouts.tar_bytes({"readme.txt": b""}))
    elif change == "a damaged devkit":
        devkit.write_bytes(devkit.read_bytes()[:-500])
    elif change == "a foreign class":
        train.write_bytes(layouts.tar_bytes({"n04.tar": layouts.synset_tar("n04", 1)}))
    elif change == "a missing class":
        train.write_bytes(layouts.tar_bytes({"n01000002.tar": layouts.synset_tar("x", 1)}))
    return "val" if "truth" in change or "another" in change else "train"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no devkit", "ILSVRC2012_devkit_t12.tar.gz is missing"),
        ("another devkit", "holds 5 images, the development kit labels 4"),
        ("an inner node as truth", "ground_truth.txt, line 5: '4' is not the ILSVRC2012_ID"),
        ("a devkit without lists", "holds no ILSVRC2012_devkit_t12/data/meta.mat"),
        ("a damaged devkit", "devkit_t12.tar.gz is cut short, damaged"),
        ("a foreign class", "n04.tar is of no class of the development kit, which has 3"),
        ("a missing class", r"lacks n02000003.tar \(2 such"),
    ],
)
def test_what_does_not_fit_the_devkit_is_refused(tmp_path, change, message):
    root = layouts.imagenet1k(tmp_path)
    split = change_archive(root, change)
    with pytest.raises(RefusedInput, match=message):
        open_source("imagenet-1k", root, split)


def test_a_meta_file_that_is_none_is_refused(tmp_path):
    root = layouts.imagenet1k(tmp_path)
    data = root / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(b"MATLAB it is not")
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    with pytest.raises(RefusedInput, match=r"meta\.mat is not the list of classes"):
        open_source("imagenet-1k", root, "val")


def streamed(source) -> list[tuple[int, bytes]]:
    return [(image.label, image.read()) for image in source.stream()]


def files_21k(wnids: list[str], numbers: dict[str, int], count: int = 4) -> list[tuple[int, bytes]]:
    """What a stream of some synsets gives, each in the order of its own tar."""
    order = [n * 7 % 1000 for n in range(count, 0, -1)]
    return [(numbers[w], image_bytes(hash_of(w, n))) for w in wnids for n in order]


ALL = ["n00000020", "n00000010", "n00000040", "n00000030"]


@pytest.mark.parametrize("gzipped", [False, True])
def test_imagenet21k_streams_the_synsets_of_a_list(tmp_path, gzipped):
    archive = layouts.imagenet21k(tmp_path / "in", gzipped=gzipped)
    (tmp_path / "list.txt").write_text("n00000040\tangora,  rabbit\nn00000020\nn00000099\n")
    for given in (archive, archive.parent):
        source = open_source("imagenet-21k", given, "train", classes=tmp_path / "list.txt")
        assert source.classes == ("n00000040 angora, rabbit", "n00000020", "n00000099")
        numbers = {"n00000040": 0, "n00000020": 1}
        assert streamed(source) == files_21k(["n00000020", "n00000040"], numbers)
        assert source.notices() == [
            "passed over 2 synsets that --classes does not name (such as n00000010)",
            "1 classes have no images (such as n00000099)",
        ]


def test_a_plain_archive_names_its_synsets_itself(tmp_path):
    archive = layouts.imagenet21k(tmp_path, gzipped=False)
    source = open_source("imagenet-21k", archive, "train")
    assert list(source.classes) == sorted(ALL)
    assert streamed(source) == files_21k(ALL, {w: n for n, w in enumerate(sorted(ALL))})
    assert source.notices() == []


def test_imagenet21k_refusals(tmp_path):
    archive = layouts.imagenet21k(tmp_path, gzipped=True)
    with pytest.raises(RefusedInput, match=r"is compressed.*--classes FILE"):
        open_source("imagenet-21k", archive, "train")
    for text, message in (("", "is empty"), ("n1\nn1 x\n", "line 2: n1 was there before")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(RefusedInput, match=message):
            open_source("imagenet-21k", archive, "train", classes=tmp_path / "list.txt")
    with pytest.raises(RefusedInput, match=r"--classes .* goes only with --source imagenet-21k"):
        open_source("image-folder", tmp_path, "train", classes=tmp_path / "list.txt")
    layouts.imagenet21k(tmp_path, gzipped=False)
    with pytest.raises(RefusedInput, match=r"holds fall11_whole.tar and winter21_whole.tar.gz"):
        open_source("imagenet-21k", tmp_path, "train")


def test_imagenet21k_builds_and_verifies(tmp_path):
    archive = layouts.imagenet21k(tmp_path / "in", gzipped=False)
    summary = build_dataset("imagenet-21k", archive, "train", tmp_path / "out", shards=3)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.num_images == 16 and dataset.num_classes == 4
    assert verify_dataset(tmp_path / "out", decode=True, workers=1).problems == ()
    assert dataset.manifest.source["options"] == {"archive": "fall11_whole.tar"}
    again = build_dataset("imagenet-21k", archive, "train", tmp_path / "out", shards=3)
    assert again.already_built and again.manifest == summary.manifest
