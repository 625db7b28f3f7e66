"""What build writes, against tarfile and webdataset; and what it refuses."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset, main
from data_pipeline.index import Manifest, open_dataset
from data_pipeline.sources import FractalOptions, FractalSource, open_source
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import image_folder_builds
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline.image_folder_builds import build_photos, files_of

photos = image_folder_builds.photos


def test_every_byte_is_where_the_index_says(photos, tmp_path):
    summary = build_photos(photos, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    source = open_source("image-folder", photos, "train")
    assert [shard.num_images for shard in dataset.manifest.shards] == [5, 5, 2]
    assert sorted(dataset.source_row) == list(range(12))
    assert dataset.classes == source.classes
    files = source.images(np.arange(12))
    for row in range(12):
        original = Path(files[dataset.source_row[row]].path).read_bytes()
        shard = dataset.shard_path(dataset.shard[row]).read_bytes()
        start = dataset.offset[row]
        assert shard[start : start + dataset.size[row]] == original
        assert dataset.label[row] == source.labels[dataset.source_row[row]]
        assert dataset.key(row) == f"{dataset.source_row[row]:09d}"
        assert (dataset.extension(row), dataset.width[row], dataset.height[row]) == ("jpg", 8, 6)
    assert summary.manifest == dataset.manifest
    assert not summary.skipped and not summary.already_built


def test_tars_are_plain_and_carry_nothing_of_their_maker(photos, tmp_path):
    build_photos(photos, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    for number, entry in enumerate(dataset.manifest.shards):
        path = tmp_path / "out" / entry.path
        assert entry.path == f"train-{number:06d}.tar"
        assert entry.num_bytes == path.stat().st_size
        assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        rows = np.flatnonzero(dataset.shard == number)
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        names = [f"{dataset.key(row)}.{end}" for row in rows for end in ("cls", "jpg")]
        assert [member.name for member in members] == names
        # One 512-byte header each, no pax header between.
        assert members[0].offset_data == 512
        assert [m.offset_data for m in members[1::2]] == dataset.offset[rows].tolist()


def test_webdataset_reads_the_same_samples(photos, tmp_path):
    import webdataset

    build_photos(photos, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    urls = [str(tmp_path / "out" / shard.path) for shard in dataset.manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(samples) == 12
    for row, sample in enumerate(samples):
        assert sample["__key__"] == dataset.key(row)
        assert int(sample["cls"]) == dataset.label[row]
        shard = dataset.shard_path(dataset.shard[row]).read_bytes()
        start = dataset.offset[row]
        assert sample["jpg"] == shard[start : start + dataset.size[row]]


@pytest.mark.integration
def test_any_number_of_workers_writes_the_same_bytes(photos, tmp_path):
    for workers in (1, 3):
        build_photos(photos, tmp_path / f"out{workers}", workers=workers, shard_images=2)
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out3")
    assert len(files_of(tmp_path / "out1")) == 6 + 2


def test_the_seed_shuffles_over_all_shards(photos, tmp_path):
    orders = []
    for name, options in {
        "0": {"seed": 0},
        "1": {"seed": 1},
        "other cut": {"seed": 0, "shard_images": 12},
        "none": {"shuffle": False},
    }.items():
        build_photos(photos, tmp_path / name, **options)
        orders.append(open_dataset(tmp_path / name).source_row.tolist())
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]  # how shards are cut does not enter the order
    assert orders[3] == list(range(12))
    digests = {Manifest.load(tmp_path / name).digest for name in ("0", "1", "none")}
    assert len(digests) == 3


@pytest.mark.parametrize("limit", [65_536, 80_000, 200_000])
def test_shard_bytes_is_a_limit(tmp_path, limit):
    root = tmp_path / "in"
    sizes = [1, 70_000, 20_000, 30_000, 512, 513, 40_000, 100, 64_000, 5_000]
    for number, size in enumerate(sizes):
        data = layouts.image_bytes(number)
        layouts.write(root / f"class/{number}.jpg", data + bytes(max(0, size - len(data))))
    build_dataset("image-folder", root, "all", tmp_path / "out", shard_bytes=limit, workers=1)
    dataset = open_dataset(tmp_path / "out")
    for number, shard in enumerate(dataset.manifest.shards):
        assert shard.num_bytes <= limit or shard.num_images == 1
        if number:  # the first image of a shard would not have fitted into the one before
            first = int(np.flatnonzero(dataset.shard == number)[0])
            before = dataset.manifest.shards[number - 1]
            # An archive's end is padded to 10,240 bytes, which the cut allows for in full.
            assert before.num_bytes + 2 * 10_240 + dataset.size[first] + 1536 > limit
    assert sorted(dataset.source_row) == list(range(10))


def test_files_that_are_no_images_are_skipped_and_named(photos, tmp_path):
    root = photos / "train"
    layouts.write(root / "class0/.DS_Store", b"\0\0\0\1Bud1")
    layouts.write(root / "class1/empty.jpg", b"")
    layouts.write(root / "class1/notes.txt", b"roses")
    os.symlink(tmp_path / "nowhere.jpg", root / "class2/gone.jpg")
    layouts.write(root / "class2/bomb.png", layouts.png_that_claims(20_000, 20_000))
    summary = build_photos(photos, tmp_path / "out", shard_images=1)
    reasons = {Path(file.where).name: file.reason for file in summary.skipped}
    assert reasons.pop("bomb.png").startswith("too large: Image size (400000000 pixels) exceeds")
    assert reasons == {
        ".DS_Store": "not a JPEG, PNG, WebP, GIF or BMP image",
        "empty.jpg": "the file is empty",
        "notes.txt": "not a JPEG, PNG, WebP, GIF or BMP image",
        "gone.jpg": "No such file or directory",
    }
    # Shards left empty are left out, and the numbers of the others close up.
    names = [shard.path for shard in summary.manifest.shards]
    assert names == [f"train-{number:06d}.tar" for number in range(12)]
    listed = (tmp_path / "out/skipped.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["where"]).name for line in listed} == {*reasons, "bomb.png"}
    assert "skipped 5 files" in summary.text() and "2 x not a JPEG" in summary.text()
    assert verify_dataset(tmp_path / "out", decode=True).problems == ()


def test_png_webp_and_misnamed_files_keep_their_bytes(tmp_path):
    root = tmp_path / "in"
    formats = {"a.jpg": "PNG", "b.png": "JPEG", "c.JPEG": "WEBP"}
    for number, (name, format) in enumerate(formats.items()):
        layouts.write(root / f"x/{name}", layouts.image_bytes(number, format=format))
    build_dataset("image-folder", root, "all", tmp_path / "out", shuffle=False, workers=1)
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.extension(row) for row in range(3)] == ["png", "jpg", "webp"]
    shard = (tmp_path / "out/all-000000.tar").read_bytes()
    for row, name in enumerate(formats):
        start = dataset.offset[row]
        assert shard[start : start + dataset.size[row]] == (root / f"x/{name}").read_bytes()


@pytest.mark.parametrize("format", ["GIF", "BMP"])
def test_gif_and_bmp_become_png_without_loss(tmp_path, format):
    data = layouts.image_bytes(7, format=format)
    layouts.write(tmp_path / "in/x/picture.jpg", data)
    summary = build_dataset("image-folder", tmp_path / "in", "all", tmp_path / "out", workers=1)
    assert summary.changes["converted"] == 1 and "stored 1 GIF or BMP" in summary.text()
    dataset = open_dataset(tmp_path / "out")
    with tarfile.open(tmp_path / "out/all-000000.tar") as tar:
        stored = Image.open(io.BytesIO(tar.extractfile(f"{dataset.key(0)}.png").read()))
        assert stored.format == "PNG"
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert_array_equal(np.asarray(stored.convert("RGB")), np.asarray(expected))


def test_cifar_becomes_png_with_the_same_pixels(tmp_path):
    layouts.cifar10(tmp_path / "in")
    build_dataset("cifar10", tmp_path / "in", "train", tmp_path / "out", workers=1)
    source = open_source("cifar10", tmp_path / "in", "train")
    dataset = open_dataset(tmp_path / "out")
    assert set(dataset.width) == set(dataset.height) == {32}
    with tarfile.open(tmp_path / "out/train-000000.tar") as tar:
        for row in range(dataset.num_images):
            image = Image.open(tar.extractfile(f"{dataset.key(row)}.png"))
            number = dataset.source_row[row]
            assert_array_equal(np.asarray(image), source.pixels[number])
            assert dataset.label[row] == source.labels[number]


def test_a_source_that_was_opened_can_be_built(tmp_path):
    source = FractalSource("val", FractalOptions(classes=2, images_per_class=3, px=8))
    summary = build_dataset(source, None, "val", tmp_path / "out", workers=1)
    assert summary.manifest.num_images == 6
    assert summary.manifest.source["options"]["px"] == 8
    assert set(open_dataset(tmp_path / "out").width) == {8}


REFUSED = {
    "both cuts": (["--shard-images", "5", "--shard-bytes", "100000"], "are both given"),
    "no images": (["--shard-images", "0"], "--shard-images 0: give at least 1"),
    "tiny shards": (["--shard-bytes", "1000"], "--shard-bytes 1000: give at least 65536"),
    "no workers": (["--workers", "0"], "--workers 0: give at least 1"),
    "seed": (["--seed", "-1"], "--seed -1: give at least 0"),
    "fractals": (["--fractal-px", "64"], "--fractal-px goes only with --source fractals"),
    "split": (["--split", "nope"], "nope does not exist"),
    "source": (["--source", "mnist"], "choose one of image-folder, tiny-imagenet"),
    "input": (["--input", "/nowhere"], "--input /nowhere is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_before_anything_is_written(photos, tmp_path, case):
    options, message = REFUSED[case]
    argv = ["--source", "image-folder", "--input", str(photos), "--split", "train"]
    with pytest.raises(RefusedInput, match=message):
        main([*argv, "--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_refused(tmp_path):
    layouts.write(tmp_path / "in/x/readme", b"nothing here")
    with pytest.raises(RefusedInput, match=r"none of the 1 files .*readme: not a JPEG"):
        build_dataset("image-folder", tmp_path / "in", "all", tmp_path / "out", workers=1)


@pytest.mark.integration
def test_the_command_leaves_with_2_and_one_message(tmp_path):
    def run(*argv):
        command = [sys.executable, "-m", "data_pipeline.build", *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    output = str(tmp_path / "out")
    refused = run("--source", "digits", "--split", "val", "--output", output)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: --split val: digits has the splits train, test\n"
    assert run("--source", "digits", "--split", "train").returncode == 2
    built = run("--source", "digits", "--split", "train", "--output", output)
    assert (built.returncode, built.stderr) == (0, "")
    assert "wrote 1,000 images of 10 classes in 1 shards" in built.stdout


@pytest.fixture(scope="module")
def real_data() -> Path:
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("VITRAIN_DATA", root.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"real images are not there: {folder} (set VITRAIN_DATA)")
    return folder


def test_real_flowers(real_data, tmp_path):
    with tarfile.open(real_data / "flowers102-12classes.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    counts = {}
    for split in ("train", "val", "test"):
        summary = build_dataset("flowers102", tmp_path, split, tmp_path / split, workers=1)
        assert not summary.skipped
        counts[split] = summary.manifest.num_images
    assert counts == {"train": 98, "val": 95, "test": 443}
    dataset = open_dataset(tmp_path / "val")
    assert len(np.unique(dataset.label)) == 12 and dataset.num_classes == 102
    assert dataset.height.min() >= 500 or dataset.width.min() >= 500
