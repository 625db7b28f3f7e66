"""Shards written by webdataset itself are indexed where they lie, and read back."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.foreign_index import IndexOptions, index_shards
from data_pipeline.foreign_places import find_shards
from data_pipeline.index import main, open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import foreign_samples
from tests.data_pipeline.foreign_samples import OPTIONS, labelled, write_shards
from tests.data_pipeline.official_layouts import image_bytes

samples = foreign_samples.samples


def assert_reads_back(folder: Path, samples: list[dict]) -> None:
    """Keys, extensions, sizes and bytes of all images, in order."""
    dataset = open_dataset(folder, ShardAccess(absolute_shards=True))
    assert dataset.num_images == len(samples)
    assert dataset.manifest.foreign
    for row, sample in enumerate(samples):
        extension = dataset.extension(row)
        assert dataset.key(row) == sample["__key__"]
        shard = dataset.shard_path(dataset.shard[row]).read_bytes()
        start = dataset.offset[row]
        assert shard[start : start + dataset.size[row]] == sample[extension]
        number = int(sample["__key__"].rpartition("/")[2])
        assert (dataset.width[row], dataset.height[row]) == (8 + number, 6)
    assert dataset.source_row.tolist() == list(range(len(samples)))


@pytest.mark.parametrize("metadata", ["cls", "json"])
def test_numbers_stay_numbers(tmp_path, metadata):
    numbers = [2, 0, 4, 4, 1, 0, 2]
    samples = [
        labelled(i, **({"cls": n} if metadata == "cls" else {"json": {"label": n, "x": 1}}))
        for i, n in enumerate(numbers)
    ]
    pattern = write_shards(tmp_path / "tars", samples)
    summary = index_shards(pattern, tmp_path / "index", OPTIONS)
    assert_reads_back(tmp_path / "index", samples)
    dataset = open_dataset(tmp_path / "index", ShardAccess(absolute_shards=True))
    assert dataset.label.tolist() == numbers
    assert dataset.classes == ("0", "1", "2", "3", "4")
    assert [shard.num_images for shard in summary.manifest.shards] == [3, 3, 1]
    assert verify_dataset(tmp_path / "index", decode=True).problems == ()


def test_names_are_numbered_in_sorted_order(tmp_path):
    names = ["emu", "cat", "dog", "cat"]
    samples = [labelled(i, json={"species": name}) for i, name in enumerate(names)]
    pattern = write_shards(tmp_path / "tars", samples)
    options = IndexOptions("theirs", "train", label_field="species", workers=1)
    index_shards(pattern, tmp_path / "index", options)
    dataset = open_dataset(tmp_path / "index", ShardAccess(absolute_shards=True))
    assert dataset.classes == ("cat", "dog", "emu")
    assert dataset.label.tolist() == [2, 0, 1, 0]
    assert verify_dataset(tmp_path / "index").problems == ()
    # A validation set that lacks a class takes the numbers of its training set.
    val = write_shards(tmp_path / "val", [labelled(9, **{"cls": b"emu"})])
    options = IndexOptions("theirs", "val", classes=tmp_path / "index", workers=1)
    index_shards(val, tmp_path / "val_index", options)
    assert open_dataset(tmp_path / "val_index").label.tolist() == [2]


def test_class_names_for_numbers_come_from_a_file(tmp_path):
    pattern = write_shards(tmp_path, [labelled(0, cls=1)])
    names = tmp_path / "names.txt"
    names.write_text("tench\ngoldfish\nshark\n")
    index_shards(pattern, tmp_path / "i", IndexOptions("x", "train", classes=names, workers=1))
    assert open_dataset(tmp_path / "i").classes == ("tench", "goldfish", "shark")


def test_in_place_the_folder_can_be_moved(tmp_path):
    samples = [labelled(number, cls=0) for number in range(4)]
    pattern = write_shards(tmp_path / "here", samples)
    before = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    index_shards(pattern, tmp_path / "here", OPTIONS)
    os.rename(tmp_path / "here", tmp_path / "there")
    assert_reads_back(tmp_path / "there", samples)
    after = {name: (tmp_path / "there" / name).read_bytes() for name in before}
    assert after == before
    moved = str(tmp_path / "there/theirs-*.tar")
    assert index_shards(moved, tmp_path / "there", OPTIONS).already_built


def test_what_cannot_be_used_is_skipped_and_named(tmp_path):
    broken = {"__key__": "broken", "jpg": b"\xff\xd8 no image", "cls": 0}
    samples = [
        labelled(0, cls=0),
        {"__key__": "no-image", "cls": 0},
        {"__key__": "no-label", "png": image_bytes(1, format="PNG")},
        {"__key__": "two", "png": image_bytes(2, format="PNG"), "jpg": image_bytes(2), "cls": 0},
        broken,
        {"__key__": "gif", "jpg": image_bytes(3, format="GIF"), "cls": 0},
        labelled(4, json={"class": 1}),
        labelled(5, json={"label": 1.5}),
        labelled(6, json={"label": True}),
        labelled(7, **{"json": b"{"}),
        labelled(8, **{"cls": b" "}),
        labelled(9, cls=1),
    ]
    pattern = write_shards(tmp_path / "tars", samples, per_shard=5)
    summary = index_shards(pattern, tmp_path / "index", OPTIONS)
    assert_reads_back(tmp_path / "index", [samples[0], samples[-1]])
    reasons = {file.where.split("/")[-1].split(" ")[-1]: file.reason for file in summary.skipped}
    expected = {
        "no-image": "0 images in the sample, which holds cls; expected one",
        "no-label": "neither .cls nor .json beside the image",
        "two": "2 images in the sample",
        "broken": "not a JPEG, PNG, WebP, GIF or BMP image",
        "gif": "a GIF file; expected JPEG, PNG or WebP",
        "00004": "its .json has no field 'label'",
        "00005": "'label' is 1.5, neither a whole number nor text",
        "00006": "'label' is True, neither a whole number nor text",
        "00007": "its .json cannot be read",
        "00008": "its .cls is empty",
    }
    assert reasons.keys() == expected.keys()
    for key, reason in expected.items():
        assert reasons[key].startswith(reason)
    assert "skipped 10 files" in summary.text()
    assert len((tmp_path / "index/skipped.jsonl").read_text().splitlines()) == 10
    assert verify_dataset(tmp_path / "index", decode=True).problems == ()


def test_archive_metadata_and_other_members_are_passed_over(tmp_path):
    pattern = write_shards(tmp_path, [{**labelled(0, cls=3), "seg.png": b"mask", "txt": "hello"}])
    with tarfile.open(tmp_path / "theirs-000.tar", "a") as tar:
        for name in ("__meta__", "__about__/a.json", "no_extension"):
            tar.addfile(tarfile.TarInfo(name))
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    summary = index_shards(pattern, tmp_path / "i", OPTIONS)
    assert (summary.manifest.num_images, summary.skipped) == (1, ())


def test_patterns_name_files_in_order(tmp_path):
    for name in ("a-000.tar", "a-001.tar", "a-010.tar", "b-000.tar"):
        (tmp_path / name).write_bytes(b"")

    def names(pattern: str) -> list[str]:
        return [path.name for path in find_shards(f"{tmp_path}/{pattern}")]

    assert names("a-{001..001}.tar") == ["a-001.tar"]
    assert names("{b,a}-000.tar") == ["b-000.tar", "a-000.tar"]
    assert names("a-*.tar") == ["a-000.tar", "a-001.tar", "a-010.tar"]
    assert names("{a-000,a-00?}.tar") == ["a-000.tar", "a-001.tar"]


def test_indexing_again_says_so_and_other_shards_are_refused(tmp_path, capsys):
    pattern = write_shards(tmp_path / "tars", [labelled(number, cls=0) for number in range(4)])
    argv = ["--shards", pattern, "--output", str(tmp_path / "index"), "--workers", "1"]
    assert main(argv) == 0
    assert "indexed 4 images of 1 classes in 2 shards" in capsys.readouterr().out
    before = (tmp_path / "index/manifest.json").read_bytes()
    assert main(argv) == 0
    assert "already holds the index of these shards" in capsys.readouterr().out
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*label_field"):
        main([*argv, "--label-field", "class"])
    fewer = ["--shards", str(tmp_path / "tars/theirs-000.tar"), *argv[2:]]
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*fingerprint"):
        main(fewer)
    assert (tmp_path / "index/manifest.json").read_bytes() == before


@pytest.mark.integration
def test_rows_lie_in_index_order_also_with_several_processes(tmp_path):
    samples = [labelled(number, cls=number % 2) for number in range(8)]
    pattern = write_shards(tmp_path / "tars", samples, per_shard=2)
    index_shards(pattern, tmp_path / "one", OPTIONS)
    index_shards(pattern, tmp_path / "two", IndexOptions("theirs", "train", workers=2))
    one, two = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("one", "two"))
    assert one == two
    assert_reads_back(tmp_path / "two", samples)
    assert np.array_equal(open_dataset(tmp_path / "two").label, [0, 1] * 4)
