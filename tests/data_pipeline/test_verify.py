"""Every kind of damage is found and named; a sound dataset is called sound."""

import dataclasses
import json
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset
from data_pipeline.index import Manifest, open_dataset, read_index, write_index
from data_pipeline.manifest import file_sha256
from data_pipeline.verify import main, verify_dataset
from tests.data_pipeline import official_layouts as layouts


@pytest.fixture
def dataset(tmp_path):
    """Twelve images in three shards of 5, 5 and 2."""
    root = layouts.image_folder(tmp_path / "in")
    build_dataset("image-folder", root, "train", tmp_path / "d", shard_images=5, workers=1)
    return tmp_path / "d"


def problems(folder, **options) -> list[str]:
    return list(verify_dataset(folder, workers=1, **options).problems)


def overwrite(path, offset, data) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def replace_columns(folder, **columns) -> None:
    """Write another index and a manifest that fits it, as a faulty writer would."""
    table = read_index(folder)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values))
    adopt(folder, index_digest=write_index(folder, table))


def adopt(folder, **changes) -> None:
    """Make the manifest say what the files are now."""
    old = Manifest.load(folder)
    shards = []
    for shard in old.shards:
        path = folder / shard.path
        fields = {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        shards.append(dataclasses.replace(shard, **fields))
    Manifest.describe(
        identity=(old.name, old.split),
        classes=old.classes,
        shards=tuple(shards),
        source=old.source,
        index_digest=changes.get("index_digest", old.index_digest),
    ).save(folder)


@pytest.mark.parametrize("decode", [False, True])
def test_a_sound_dataset(dataset, capsys, decode):
    assert main([str(dataset), *(["--decode"] if decode else [])]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sound: 12 images of 3 classes in 3 shards, ")
    assert ("every image decodes" in out) == decode


def test_a_changed_byte_is_found_by_its_digest(dataset, capsys):
    opened = open_dataset(dataset)
    overwrite(dataset / "train-000001.tar", int(opened.offset[7]) + 100, b"\0")
    assert problems(dataset) == ["train-000001.tar: its SHA-256 is not the one in manifest.json"]
    assert main([str(dataset)]) == 1
    assert "damaged: 1 problem\n  train-000001.tar: its" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cut", "message"),
    [(600, "unexpected end of data"), (0, "the blocks that end an archive are missing")],
)
def test_a_shard_cut_short(dataset, cut, message):
    path = dataset / "train-000000.tar"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size // 2 - cut)
    found = problems(dataset, decode=True)
    assert found[0] == f"train-000000.tar: {size // 2 - cut} bytes, manifest.json says {size}"
    assert f"not a plain, complete tar file: {message}" in found[1]
    reached = 5 - int(found[1].split("; ")[1].split(" of its 5 images")[0])
    assert 0 < reached < 5
    # What lies behind the cut does not decode, nor the image that it went through.
    broken = sum("does not decode" in problem for problem in found)
    assert broken == 5 - reached + (cut > 0)


def test_everything_wrong_is_listed_not_only_the_first(dataset):
    (dataset / "train-000002.tar").unlink()
    overwrite(dataset / "train-000000.tar", 0, b"X")
    found = problems(dataset)
    assert "train-000002.tar: the file is missing" in found
    assert "train-000000.tar: its SHA-256 is not the one in manifest.json" in found
    assert any(problem.startswith("train-000000.tar: not a plain") for problem in found)


def test_an_undecodable_image_is_found_only_by_decoding(dataset):
    opened = open_dataset(dataset)
    row, path = 8, dataset / "train-000001.tar"
    # The header stays, so that only decoding finds it.
    tail = int(opened.size[row]) // 2
    overwrite(path, int(opened.offset[row]) + int(opened.size[row]) - tail, bytes(tail))
    adopt(dataset)
    assert problems(dataset) == []
    (found,) = problems(dataset, decode=True)
    assert found.startswith(f"train-000001.tar: {opened.key(row)}.jpg does not decode: ")


def test_a_label_that_differs(dataset):
    opened = open_dataset(dataset)
    labels = opened.label.copy()
    labels[3] = (labels[3] + 1) % 3
    replace_columns(dataset, label=labels)
    assert problems(dataset) == [
        f"train-000000.tar: {opened.key(3)}: label {opened.label[3]} in the tar, {labels[3]} in "
        "the index"
    ]


def test_a_key_or_size_that_differs(dataset):
    opened = open_dataset(dataset)
    sizes, keys = opened.size.copy(), [opened.key(row) for row in range(12)]
    sizes[0] -= 1
    keys[11] = "other"
    replace_columns(dataset, size=sizes, key=pa.array(keys, pa.large_string()))
    found = problems(dataset)
    assert len(found) == 2
    assert found[0].startswith("train-000000.tar: (key, extension, size) are ")
    assert "'other'" in found[1]


def test_an_offset_that_is_off(dataset):
    opened = open_dataset(dataset)
    offsets = opened.offset.copy()
    offsets[2] += 1
    replace_columns(dataset, offset=offsets)
    key = opened.key(2)
    assert problems(dataset) == [
        f"train-000000.tar: {key} is in the tar but not in the index, or not at its offset",
        f"train-000000.tar: {key} is in the index but not in the tar at its offset",
    ]


def test_a_member_that_the_index_lacks(dataset):
    with tarfile.open(dataset / "train-000002.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("extra.jpg"))
    adopt(dataset)
    assert problems(dataset) == [
        "train-000002.tar: extra is in the tar but not in the index, or not at its offset"
    ]


def test_a_label_file_that_is_gone(dataset):
    name = (dataset / "train-000002.tar").read_bytes()[:100].rstrip(b"\0")
    assert name.endswith(b".cls")
    header = bytearray((dataset / "train-000002.tar").read_bytes()[:512])
    header[len(name) - 3 : len(name)] = b"txt"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    overwrite(dataset / "train-000002.tar", 0, bytes(header))
    adopt(dataset)
    (found,) = problems(dataset)
    assert found.endswith("neither .cls nor .json beside the image")


def test_an_index_of_other_content_or_none(dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    write_index(dataset, read_index(dataset).slice(0, 10))
    found = problems(dataset)
    assert "index.parquet is not the one that manifest.json was written for" in found
    assert "manifest.json counts 12 images, index.parquet 10" in found
    assert "the content of index.parquet does not have the digest in manifest.json" in found
    assert any("is in the tar but not in the index" in problem for problem in found)
    (dataset / "index.parquet").write_bytes(b"PAR1")
    assert len(problems(dataset)) == 1 and "cannot be read" in problems(dataset)[0]
    (dataset / "index.parquet").unlink()
    assert "index.parquet is missing" in problems(dataset)[0]
    assert json.loads((dataset / "manifest.json").read_text()) == manifest


def test_an_index_in_disorder_is_still_compared_shard_by_shard(dataset):
    table = read_index(dataset)
    order = np.random.default_rng(0).permutation(12)
    adopt(dataset, index_digest=write_index(dataset, table.take(pa.array(order))))
    found = problems(dataset)
    assert found == ["index.parquet is not in the order of the shards, or its images overlap"]


@pytest.mark.parametrize("argv", [["nowhere"], ["."], [".", "--workers", "0"]])
def test_what_is_not_a_dataset_is_refused(tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedInput):
        main(argv)


@pytest.mark.integration
def test_exit_codes(dataset, tmp_path):
    def code(folder) -> int:
        command = [sys.executable, "-m", "data_pipeline.verify", str(folder)]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    assert code(dataset) == 0
    (dataset / "train-000000.tar").unlink()
    assert code(dataset) == 1
    assert code(tmp_path) == 2
