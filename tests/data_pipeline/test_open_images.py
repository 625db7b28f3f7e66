"""OpenImages in its official layout: verified labels, from the archives to batches."""

import json
import tarfile

import numpy as np
import pytest
import torch

from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline import index_cache
from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.build import build_dataset
from data_pipeline.contact_sheet import Sheet, draw_contact_sheet
from data_pipeline.index import open_dataset
from data_pipeline.label_sets import LabelSet
from data_pipeline.loader import EvalLoader, TrainLoader
from data_pipeline.order import SampleOrder
from data_pipeline.repair import repair_dataset
from data_pipeline.show import describe
from data_pipeline.sources import open_source
from data_pipeline.subset import training_images
from data_pipeline.verify import verify_dataset
from tests.data_pipeline.archive_layouts import image_id, open_images
from tests.data_pipeline.official_layouts import image_bytes
from tests.data_pipeline.sample_label_sets import label_set_dataset

# By number of the image; classes are dog, cat, tree.
HUMAN = {0: ((1,), (2,)), 1: ((0, 1), ()), 3: ((), (2,))}
WITH_GUESSES = {0: ((0, 1), (2,)), 1: ((0, 1), ()), 3: ((), (2,)), 4: ((1,), ())}


def streamed(source) -> dict[bytes, LabelSet]:
    return {image.read(): image.label for image in source.stream()}


def expected(labels) -> dict[bytes, LabelSet]:
    return {image_bytes(number): LabelSet(*sets) for number, sets in labels.items()}


@pytest.mark.parametrize("version", ["oidv6-", "oidv7-", ""])
@pytest.mark.parametrize("archived", [False, True])
def test_labels_that_people_verified(tmp_path, archived, version):
    root = open_images(tmp_path, archived=archived, version=version)
    source = open_source("open-images", root, "train")
    assert source.classes == ("/m/0c Dog, big", "/m/0a Cat", "/m/0b Tree")
    assert streamed(source) == expected(HUMAN)
    assert source.notices() == ["passed over 3 images without a label of these classes"]
    assert (
        source.num_bytes > 0 and source.options()["class_list"] == f"{version}classes-trainable.txt"
    )


@pytest.mark.parametrize("change", ["another image", "another size"])
def test_other_files_in_the_folders_are_another_source(tmp_path, change):
    root = open_images(tmp_path, archived=False)
    before = open_source("open-images", root, "train").fingerprint()
    assert open_source("open-images", root, "train").fingerprint() == before
    old = root / "train_a" / f"{image_id(2)}.jpg"
    if change == "another image":
        old.rename(old.with_name("f" * 16 + ".jpg"))
    else:
        old.write_bytes(old.read_bytes() + b"!")
    assert open_source("open-images", root, "train").fingerprint() != before


def test_the_classifiers_labels_never_contradict_people(tmp_path):
    root = open_images(tmp_path, archived=False)
    source = open_source("open-images", root, "train", machine_confidence=0.65)
    assert streamed(source) == expected(WITH_GUESSES)


def test_a_list_of_classes_goes_before_the_trainable_ones(tmp_path):
    root = open_images(tmp_path, archived=False)
    (tmp_path / "mine").write_text("/m/0d\n/m/0a\n")
    source = open_source("open-images", root, "train", classes=tmp_path / "mine")
    assert source.classes == ("/m/0d Sky", "/m/0a Cat")
    assert streamed(source) == expected({0: ((1,), ()), 1: ((1,), ()), 2: ((0,), ())})
    (root / "oidv6-classes-trainable.txt").unlink()
    assert len(open_source("open-images", root, "train").classes) == 4


@pytest.fixture
def dataset(tmp_path):
    root = open_images(tmp_path / "in", archived=True)
    build_dataset("open-images", root, "train", tmp_path / "out", shards=2)
    return open_dataset(tmp_path / "out")


def test_the_index_and_the_shards_hold_the_sets(dataset, tmp_path):
    assert dataset.is_multi_label and dataset.num_images == 3
    by_row = dict(zip((0, 1, 2), (HUMAN[0], HUMAN[3], HUMAN[1]), strict=True))  # as streamed
    for row in range(3):
        sets = by_row[int(dataset.source_row[row])]
        assert dataset.label_sets.of_row(row) == LabelSet(*sets)
        with tarfile.open(dataset.shard_path(dataset.shard[row])) as tar:
            member = tar.extractfile(f"{dataset.key(row)}.cls.json").read()
        assert json.loads(member) == {"positive": list(sets[0]), "negative": list(sets[1])}
    assert (dataset.label == -1).all()
    assert dataset.images_per_class().tolist() == [1, 2, 0]
    assert verify_dataset(dataset.folder, decode=True, workers=1).problems == ()


def test_webdataset_reads_the_samples(dataset):
    import webdataset

    urls = [str(dataset.shard_path(n)) for n in range(dataset.num_shards)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert [sample["__key__"] for sample in samples] == [dataset.key(row) for row in range(3)]
    for row, sample in enumerate(samples):
        assert tuple(sample["cls.json"]["positive"]) == dataset.label_sets.of_row(row).positive


def test_a_selection_keeps_the_sets_of_its_rows(dataset):
    part = dataset.select(np.array([2]))
    assert part.label_sets.of_row(0) == dataset.label_sets.of_row(2)
    assert part.images_per_class().sum() == len(dataset.label_sets.of_row(2).positive)
    assert dataset.select(np.array([1, 2])).label_sets.of_row(1) == part.label_sets.of_row(0)


def test_a_memory_mapped_index_has_the_same_sets(dataset, monkeypatch):
    before = [dataset.label_sets.of_row(row) for row in range(3)]
    monkeypatch.setattr(index_cache, "CACHED_FROM_IMAGES", 1)
    for _ in range(2):  # written, then found
        mapped = open_dataset(dataset.folder)
        assert index_cache.was_checked(mapped._table)
        assert [mapped.label_sets.of_row(row) for row in range(3)] == before
    assert mapped.images_per_class().tolist() == [1, 2, 0]


def test_a_repair_keeps_the_sets_of_the_images_that_are_left(tmp_path):
    dataset = label_set_dataset(tmp_path / "sets")
    before = [dataset.label_sets.of_row(row) for row in range(24)]
    path = dataset.shard_path(dataset.shard[3])
    data = bytearray(path.read_bytes())
    start, size = int(dataset.offset[3]), int(dataset.size[3])
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    repair_dataset(dataset.folder, max_lost_fraction=0.5, workers=1)
    repaired = open_dataset(dataset.folder)
    assert [repaired.label_sets.of_row(row) for row in range(23)] == before[:3] + before[4:]
    assert verify_dataset(dataset.folder, decode=True, workers=1).problems == ()


def test_filters_by_the_one_class_of_an_image_are_refused(dataset):
    assert training_images(dataset, SubsetConfig(), seed=0).num_images == 3
    for options in ({"fraction": 0.5}, {"classes": ("/m/0a",)}, {"images_per_class": 1}):
        with pytest.raises(RefusedInput, match=rf"data\.{next(iter(options))} chooses images by"):
            training_images(dataset, SubsetConfig(**options), seed=0)


def test_changed_labels_are_found(dataset):
    path = dataset.shard_path(dataset.shard[0])
    data = path.read_bytes()
    sets = dataset.label_sets.of_row(0).as_json()
    path.write_bytes(data.replace(sets, sets.replace(b"positive", b"negativE"), 1))
    found = "\n".join(verify_dataset(dataset.folder, decode=False, workers=1).problems)
    assert "SHA-256" in found and ".cls.json cannot be read: expected 'positive'" in found


def test_batches_say_what_is_known(dataset):
    order = SampleOrder(dataset, num_streams=2, seed=0)
    transform = TrainTransform(AugmentConfig(), (4, 4), 0)
    with TrainLoader(dataset, order, transform=transform, batch_images=6) as loader:
        images, labels = next(loader).to("cpu")
        rows = next(iter(loader)).rows
    assert images.shape == (6, 3, 4, 4) and labels.dtype == torch.int8
    assert sorted(rows.tolist()) == [0, 0, 1, 1, 2, 2]
    known = {0: [-1, 1, 0], 2: [1, 1, -1], 1: [-1, -1, 0]}  # by source row
    want = sorted(known[int(dataset.source_row[row])] for row in (0, 0, 1, 1, 2, 2))
    assert sorted(labels.tolist()) == want


def test_an_evaluation_pads_with_unknown(dataset):
    loader = EvalLoader(dataset, transform=EvalTransform((4, 4), None), batch_images=2)
    first, second = list(loader)
    assert second.rows.tolist() == [2, -1]
    assert second.labels[1].tolist() == [-1, -1, -1]
    known = [dataset.label_sets.known(row, 3).tolist() for row in range(3)]
    assert [*first.labels.tolist(), second.labels[0].tolist()] == known


def test_people_see_the_names_of_all_classes(dataset, tmp_path):
    text = describe(dataset)
    assert "/m/0a Cat" in text and "class (images)" in text
    draw_contact_sheet(dataset, Sheet(num_images=3), tmp_path / "sheet.png")
    names = {dataset.class_text(row) for row in range(3)}
    assert names == {"/m/0a Cat", "/m/0c Dog, big, /m/0a Cat", ""}


_LABELS = "oidv6-train-annotations-human-imagelabels.csv"
_DESCRIPTIONS = "oidv6-class-descriptions.csv"
# What is written into, taken out of (None) or replaced in files.
BREAKAGE = {
    "no descriptions": {_DESCRIPTIONS: None},
    "two descriptions": {"class-descriptions.csv": "/m/0a,Cat\n"},
    "three columns": {_DESCRIPTIONS: "/m/0a,Cat\n/m/0b,Tree,Oak\n"},
    "unknown class": {"oidv6-classes-trainable.txt": "/m/0a\n/m/zz\n"},
    "no labels": {_LABELS: None},
    "no column": {_LABELS: ("LabelName", "Label")},
    "short id": {_LABELS: (image_id(1), "abc")},
    "no number": {_LABELS: (",1\n", ",yes\n")},
    "a percentage": {_LABELS: (",1\n", ",100\n")},
    "no images": {"train_0.tar.gz": None, "train_a.tar.gz": None},
}


def break_layout(root, change):
    for name, edit in BREAKAGE[change].items():
        if edit is None:
            (root / name).unlink()
        elif isinstance(edit, tuple):
            (root / name).write_text((root / name).read_text().replace(*edit))
        else:
            (root / name).write_text(edit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no descriptions", r"class-descriptions\.csv is missing"),
        ("two descriptions", r"fits class-descriptions\.csv and oidv6"),
        ("three columns", "line 2: expected an identifier and a name"),
        ("unknown class", r"names /m/zz \(1 such\), which .* does not describe"),
        ("no labels", r"train-annotations-human-imagelabels\.csv is missing"),
        ("no column", "is not a list of image-level labels"),
        ("short id", "has not 16 hexadecimal digits"),
        ("no number", "is not a list of image-level labels"),
        ("a percentage", "a confidence is not within"),
        ("no images", r"train\.tar\.gz is missing"),
    ],
)
def test_a_broken_layout_is_refused(tmp_path, change, message):
    root = open_images(tmp_path, archived=True)
    break_layout(root, change)
    with pytest.raises(RefusedInput, match=message):
        open_source("open-images", root, "train")


def test_impossible_options_are_refused(tmp_path):
    root = open_images(tmp_path, archived=True)
    with pytest.raises(RefusedInput, match=r"--machine-confidence 1\.5"):
        open_source("open-images", root, "train", machine_confidence=1.5)
    with pytest.raises(RefusedInput, match=r"validation.* is missing"):
        open_source("open-images", root, "validation")
