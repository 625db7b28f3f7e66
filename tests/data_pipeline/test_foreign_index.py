"""Shards written by webdataset itself are indexed where they lie, and read back."""

import functools
import http.server
import json
import os
import tarfile
import tempfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from fsspec.implementations.memory import MemoryFileSystem

from configs.errors import RefusedInput
from data_pipeline.foreign_index import IndexOptions, index_shards
from data_pipeline.foreign_places import find_shards
from data_pipeline.index import main, open_dataset, read_index
from data_pipeline.location import ShardAccess
from data_pipeline.manifest import Manifest
from data_pipeline.shard_reader import ShardReader
from data_pipeline.verify import verify_dataset
from tests.data_pipeline.official_layouts import image_bytes
from tests.data_pipeline.quick_transfers import read_sources_by, transfers_that_try

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
OPTIONS = IndexOptions(name="theirs", split="train", workers=1)


def write_shards(folder: Path, samples: list[dict], per_shard: int = 3) -> str:
    """Write samples with webdataset's own writer; gives the pattern that names the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "theirs-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return str(folder / "theirs-*.tar")


def labelled(number: int, **labels) -> dict:
    """A sample with an image of one of the four extensions, 8 + number pixels wide."""
    extension = list(FORMATS)[number % 4]
    data = image_bytes(number, size=(8 + number, 6), format=FORMATS[extension])
    return {"__key__": f"some/dir.d/{number:05d}", extension: data, **labels}


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


LABELS = {
    "mixed": ([1, "cat"], None, r"numbers in some samples \(1\) and names in others \('cat'\)"),
    "negative": ([0, -1], None, "label -1 is not a class number"),
    "too large": ([0, 3], "a\nb\nc\n", r"label 3 is not a class number 0\.\.2"),
    "unknown name": (["a", "d"], "a\nb\nc\n", r"label 'd' \(1 such\) is not in --classes"),
    "no classes": ([0], "\n", "give every class once"),
    "class twice": ([0], "a\na\n", "give every class once"),
}


@pytest.mark.parametrize("case", LABELS)
def test_impossible_labels_are_refused(tmp_path, case):
    labels, classes, message = LABELS[case]
    samples = [labelled(number, json={"label": label}) for number, label in enumerate(labels)]
    argv = ["--shards", write_shards(tmp_path, samples), "--output", str(tmp_path / "i")]
    if classes is not None:
        (tmp_path / "names.txt").write_text(classes)
        argv += ["--classes", str(tmp_path / "names.txt")]
    with pytest.raises(RefusedInput, match=message):
        main([*argv, "--workers", "1"])
    assert not (tmp_path / "i").exists()


def damaged_at_the_last_sample(path: Path, damage: str) -> bytes:
    """What tarfile takes for the end of an archive."""
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        header = tar.getmembers()[-2].offset
    return {
        "cut in a header": data[: header + 100],
        "no end": data[:header],
        "bad header": data[:header] + b"\1" * 512 + data[header + 512 :],
    }[damage]


def damaged_tar(folder: Path, damage: str) -> str:
    pattern = write_shards(folder, [labelled(number, cls=0) for number in range(3)])
    path = folder / "theirs-000.tar"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2 - 100])
    elif damage == "garbage":
        path.write_bytes(b"not a tar" * 1000)
    elif damage == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.cls"))
    elif damage == "twice":
        with tarfile.open(path, "a") as tar:
            for _ in range(2):
                tar.addfile(tarfile.TarInfo("a.cls"))
    elif damage == "empty":
        with tarfile.open(path, "w"):
            pass
    else:
        path.write_bytes(damaged_at_the_last_sample(path, damage))
    return pattern


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"theirs-000.tar: not a plain, complete tar file: the blocks that end"),
        ("garbage", "not a plain, complete tar file"),
        ("cut in a header", r"no header at byte \d+ \(truncated header\)"),
        ("no end", "the blocks that end an archive are missing"),
        ("bad header", r"no header at byte \d+ \("),
        ("compressed", r"not a plain, complete tar file: it is compressed \(gzip\)"),
        ("twice", "duplicate file name"),
        ("empty", "the tars hold no samples|no sample can be used"),
    ],
)
def test_damaged_tars_are_refused(tmp_path, damage, message):
    pattern = damaged_tar(tmp_path, damage)
    with pytest.raises(RefusedInput, match=message):
        index_shards(pattern, tmp_path / "i", OPTIONS)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "pipe:cat a.tar"], "commands and chained URLs are never followed"),
        (["--shards", "filecache::s3://b/a.tar"], "commands and chained URLs are never"),
        (["--shards", "https://me:secret@example.org/a.tar"], r"^--shards \.\.\.example\.org/a"),
        (
            ["--shards", "https://example.org/a.tar?sig=secret"],
            "org/a.tar: the manifest would hold",
        ),
        (["--shards", "nosuch://b/a.tar"], "nosuch://b/a.tar cannot be opened"),
        (["--shards", "memory://nowhere/{0..1}.tar"], "there is no file memory://nowhere/0.tar"),
        (["--shards", "memory://nowhere/*.tar"], r"there is no file memory://nowhere/\*.tar"),
        (["--shards", "/nowhere/{00..10}.tar"], "there is no file /nowhere/00.tar"),
        (["--shards", "/"], "/ is not a file"),
        (["--shards", "/nowhere/{00..10"], r"--shards /nowhere/\{00..10: Unbalanced braces"),
        (["--workers", "0"], "--workers 0: give at least 1"),
        (["--classes", "/nowhere"], "--classes /nowhere is neither a text file"),
    ],
)
def test_bad_options_are_refused(tmp_path, monkeypatch, options, message):
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 4))
    pattern = write_shards(tmp_path, [labelled(0, cls=0)])
    with pytest.raises(RefusedInput, match=message):
        main(["--shards", pattern, "--output", str(tmp_path / "i"), *options])


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


def img2dataset_shards(folder: Path, breeds: list[str]) -> str:
    """As img2dataset writes them: 00000.tar with KEY.jpg, KEY.txt, KEY.json, and files beside."""
    folder.mkdir()
    for shard in range(2):
        lines = []
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for place, breed in enumerate(breeds[shard::2]):
                key = f"{shard:05d}{place:04d}"
                fields = {
                    "url": f"https://example.org/{key}.jpg",
                    "caption": f"a photo of a {breed}",
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "width": 8,
                    "height": 6,
                    "exif": "{}",
                    "breed": breed,  # by --save_additional_columns
                }
                number = shard * 100 + place
                writer.write(
                    {
                        "__key__": key,
                        "jpg": image_bytes(number, size=(8, 6)),
                        "txt": fields["caption"],
                        "json": json.dumps(fields).encode(),
                    }
                )
                lines.append(fields)
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": len(lines)}))
        (folder / f"{shard:05d}.parquet").write_bytes(b"not read")
    return str(folder / "{00000..00001}.tar")


BREEDS = ["pug", "siamese", "boxer", "persian", "iguana", "pug"]  # shard 0 has every second


def test_img2dataset_shards_with_a_label_map(tmp_path):
    pattern = img2dataset_shards(tmp_path / "laion", BREEDS)
    (tmp_path / "map.yaml").write_text("pug: dog\nboxer: dog\nsiamese: cat\npersian: cat\n")
    argv = ["--shards", pattern, "--output", str(tmp_path / "laion"), "--workers", "1"]
    argv += ["--label-field", "breed", "--label-map", str(tmp_path / "map.yaml")]
    assert main(argv) == 0
    dataset = open_dataset(tmp_path / "laion")
    assert dataset.classes == ("cat", "dog")
    expected = [("00000", "0000", 1), ("00000", "0001", 1)]  # the iguana is left out
    expected += [("00001", "0000", 0), ("00001", "0001", 0), ("00001", "0002", 1)]
    found = [(dataset.key(row)[:5], dataset.key(row)[5:], dataset.label[row]) for row in range(5)]
    assert found == expected
    skipped = json.loads((tmp_path / "laion/skipped.jsonl").read_text())
    assert skipped["where"].endswith("00000.tar: 000000002")
    assert skipped["reason"] == "its label is not in the label map"
    assert verify_dataset(tmp_path / "laion", decode=True, workers=1).problems == ()
    # The same map in another order is the same index; another map is not.
    lines = (tmp_path / "map.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "map.yaml").write_text("".join(reversed(lines)))
    assert main(argv) == 0
    (tmp_path / "map.yaml").write_text("pug: dog\n")
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*label_map"):
        main(argv)


def test_open_clip_shards_with_numbers_and_a_label_map(tmp_path):
    """open_clip and CLIP_benchmark: cls beside the image, names of the classes in a text file."""
    samples = [labelled(number, cls=number % 3, txt="a photo") for number in range(6)]
    pattern = write_shards(tmp_path / "tars", samples)
    (tmp_path / "classnames.txt").write_text("tench\ngoldfish\nshark\n")
    names = IndexOptions("in", "train", classes=tmp_path / "classnames.txt", workers=1)
    index_shards(pattern, tmp_path / "whole", names)
    assert open_dataset(tmp_path / "whole").classes == ("tench", "goldfish", "shark")
    (tmp_path / "map.json").write_text('{"0": "bony", "2": "cartilage", "7": "bony"}')
    options = IndexOptions("in", "train", label_map=tmp_path / "map.json", workers=1)
    index_shards(pattern, tmp_path / "mapped", options)
    dataset = open_dataset(tmp_path / "mapped")
    assert dataset.classes == ("bony", "cartilage") and dataset.label.tolist() == [0, 1, 0, 1]
    assert verify_dataset(tmp_path / "mapped", workers=1).problems == ()


def test_labels_by_key_and_in_a_text_member(tmp_path):
    samples = [labelled(number, txt="emu" if number else "cat") for number in range(3)]
    pattern = write_shards(tmp_path / "tars", samples)
    index_shards(pattern, tmp_path / "t", IndexOptions("x", "train", ".txt", workers=1))
    assert open_dataset(tmp_path / "t").classes == ("cat", "emu")
    (tmp_path / "map.yaml").write_text("some/dir.d/00001: cow\nsome/dir.d/00002: bee\n")
    options = IndexOptions("x", "train", "__key__", tmp_path / "map.yaml", workers=1)
    index_shards(pattern, tmp_path / "k", options)
    dataset = open_dataset(tmp_path / "k")
    assert [dataset.class_text(row) for row in range(2)] == ["cow", "bee"]
    for folder in ("t", "k"):
        assert verify_dataset(tmp_path / folder, workers=1).problems == ()


def test_verify_applies_the_map_that_was_given(tmp_path):
    pattern = write_shards(tmp_path / "tars", [labelled(n, cls=n % 2) for n in range(3)])
    (tmp_path / "map.yaml").write_text("0: a\n1: b\n")
    options = IndexOptions("x", "train", label_map=tmp_path / "map.yaml", workers=1)
    index_shards(pattern, tmp_path / "i", options)
    kept = tmp_path / "i/index.label_map.json"
    kept.write_text(kept.read_text().replace('"b"', '"c"'))
    (problem,) = verify_dataset(tmp_path / "i", workers=1).problems
    assert "is not the label map that the index was made with" in problem
    kept.unlink()
    (problem,) = verify_dataset(tmp_path / "i", workers=1).problems
    assert "index.label_map.json cannot be read" in problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-field", "__key__"], "keys are no classes; give with --label-map"),
        (["--label-field", ".txt"], "no .txt beside the image"),
        (["--label-map", "/nowhere"], "--label-map /nowhere cannot be read"),
        (["--label-map", "{map}"], "the first is .*: its label is not in the label map"),
    ],
)
def test_labels_that_cannot_be_had_are_refused(tmp_path, options, message):
    pattern = write_shards(tmp_path / "tars", [labelled(0, cls=0)])
    (tmp_path / "map.yaml").write_text("1: a\n")
    given = [word.replace("{map}", str(tmp_path / "map.yaml")) for word in options]
    with pytest.raises(RefusedInput, match=message):
        main(["--shards", pattern, "--output", str(tmp_path / "i"), "--workers", "1", *given])
    assert not (tmp_path / "i").exists()


def on_a_server(folder: Path) -> str:
    """Put the shards of a folder behind URLs of fsspec's memory; gives a pattern for them."""
    files = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        files.pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())
    return f"memory://{folder.name}/theirs-*.tar"


@pytest.fixture
def samples():
    return [labelled(number, cls=number % 2) for number in range(5)]


def test_remote_shards_are_indexed_where_they_lie(tmp_path, samples, monkeypatch):
    write_shards(tmp_path / "bucket-a", samples)
    pattern = on_a_server(tmp_path / "bucket-a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    summary = index_shards(pattern, tmp_path / "remote", OPTIONS)
    assert "reading them takes --data.absolute-shards" in summary.text()
    index_shards(str(tmp_path / "bucket-a/*.tar"), tmp_path / "local", OPTIONS)
    assert not any((tmp_path / "temporary").iterdir())
    remote, local = Manifest.load(tmp_path / "remote"), Manifest.load(tmp_path / "local")
    assert [shard.path for shard in remote.shards] == [
        "memory://bucket-a/theirs-000.tar",
        "memory://bucket-a/theirs-001.tar",
    ]
    assert remote.digest == local.digest  # the same data wherever it lies
    assert read_index(tmp_path / "remote").equals(read_index(tmp_path / "local"))
    asked_for = ShardAccess(absolute_shards=True)
    here, there = (ShardReader(open_dataset(tmp_path / n, asked_for)) for n in ("local", "remote"))
    assert [there.read(row) for row in range(5)] == [here.read(row) for row in range(5)]
    braces = pattern.replace("*", "{000..001}")
    assert index_shards(braces, tmp_path / "remote", OPTIONS).already_built
    fsspec.filesystem("memory").pipe_file("/bucket-a/theirs-001.tar", b"another")
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*fingerprint"):
        index_shards(pattern, tmp_path / "remote", OPTIONS)


def test_a_shard_that_arrives_in_part_is_asked_for_again(tmp_path, samples, monkeypatch):
    write_shards(tmp_path / "bucket-b", samples)
    pattern = on_a_server(tmp_path / "bucket-b")
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 4))
    plain, calls = MemoryFileSystem.cat_file, []

    def cut(self, path, start=None, end=None, **options):
        calls.append(path)
        if len(calls) == 1:
            raise ConnectionResetError("reset by peer")
        data = plain(self, path, start, end, **options)
        return data[:700] if len(calls) < always_until and start == 0 else data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut)
    always_until = 3
    index_shards(pattern, tmp_path / "i", OPTIONS)
    assert len(calls) == 4  # the first shard three times, the last time from byte 700 on
    assert open_dataset(tmp_path / "i").label.tolist() == [0, 1, 0, 1, 0]

    def stuck(self, path, **options):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", stuck)
    with pytest.raises(RefusedInput, match=r"000.tar cannot be read: gave up after 4 .* by peer"):
        index_shards(pattern, tmp_path / "j", OPTIONS)
    assert not (tmp_path / "j").exists()


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_shards_of_a_web_server(tmp_path, samples):
    write_shards(tmp_path / "tars", samples)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "tars")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        index_shards(url + "/theirs-{000..001}.tar", tmp_path / "braces", OPTIONS)
        with pytest.raises(RefusedInput, match=r"there is no file http.*theirs-002\.tar"):
            index_shards(url + "/theirs-{000..002}.tar", tmp_path / "missing", OPTIONS)
        server.shutdown()
    manifest = Manifest.load(tmp_path / "braces")
    assert [shard.path for shard in manifest.shards] == [
        f"{url}/theirs-000.tar",
        f"{url}/theirs-001.tar",
    ]
    assert manifest.num_images == 5
