"""Shards of a stream: mixed by the seed, the same bytes whatever the buffer, memory bounded."""

import hashlib
import tarfile
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from webdataset import TarWriter

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset, main
from data_pipeline.index import Manifest, open_dataset
from data_pipeline.shard_plan import BuildOptions, num_stream_shards
from data_pipeline.sources import StreamedImage
from data_pipeline.stream_writer import shard_numbers
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import archive_layouts as layouts
from tests.data_pipeline.official_layouts import image_bytes
from tests.data_pipeline.sample_streams import Stream, build, files_of


def test_every_image_is_in_the_shard_of_its_number(tmp_path):
    summary = build(tmp_path / "out", shards=4, seed=7)
    dataset = open_dataset(tmp_path / "out")
    drawn = list(zip(range(60), shard_numbers(4, seed=7), strict=False))
    rows = sorted((number, row) for row, number in drawn if row != 3)
    assert list(zip(dataset.shard, dataset.source_row, strict=True)) == rows
    assert dataset.label.tolist() == [row // 10 for _, row in rows]
    for row in range(59):
        shard = dataset.shard_path(dataset.shard[row]).read_bytes()
        start = dataset.offset[row]
        assert shard[start : start + dataset.size[row]] == image_bytes(1)
        assert dataset.key(row) == f"{dataset.source_row[row]:09d}"
    assert [(file.where, file.reason) for file in summary.skipped] == [
        ("place 3", "not a JPEG, PNG, WebP, GIF or BMP image")
    ]
    assert "a notice" in summary.text()
    assert verify_dataset(tmp_path / "out", decode=True, workers=1).problems == ()


def test_shards_are_the_bytes_that_webdataset_writes(tmp_path):
    build(tmp_path / "out", shards=2)
    for entry in Manifest.load(tmp_path / "out").shards:
        path = tmp_path / "out" / entry.path
        with tarfile.open(path) as tar, open(tmp_path / "copy.tar", "wb") as file:
            members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
            with TarWriter(file, user="", group="", mtime=0, encoder=False) as copy:
                for (cls, label), (name, data) in zip(members[::2], members[1::2], strict=True):
                    key, extension = name.split(".")
                    assert cls == f"{key}.cls"
                    copy.write({"__key__": key, "cls": label, extension: data})
        assert path.read_bytes() == (tmp_path / "copy.tar").read_bytes()
        assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_buffer_does_not_show(tmp_path):
    for name, size in {"one": 1, "some": 5_000, "all": 1 << 30}.items():
        build(tmp_path / name, shards=5, buffer_bytes=size)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "some") == files_of(tmp_path / "all")


def test_the_seed_mixes_the_classes(tmp_path):
    build(tmp_path / "out", Stream(count=1000, num_images=1000), shard_images=250)
    dataset = open_dataset(tmp_path / "out")
    sizes = np.bincount(dataset.shard)
    assert len(sizes) == 4 and sizes.min() > 200 and sizes.max() < 300
    for shard in range(4):  # 100 classes of 10: a shard of 250 misses about 6 % of them
        assert len(set(dataset.label[dataset.shard == shard])) > 85
    build(tmp_path / "other", Stream(count=1000, num_images=1000), shard_images=250, seed=1)
    assert open_dataset(tmp_path / "other").digest != dataset.digest


def test_the_drawn_shards_are_the_same_for_ever():
    draws = shard_numbers(1000, seed=3)
    assert [next(draws) for _ in range(5)] == GOLDEN


GOLDEN = [919, 106, 29, 225, 302]


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for name, count in {"a": 200, "b": 800}.items():
        stream = Stream(count=count, padding_bytes=20_000, num_images=count)
        tracemalloc.start()
        build(tmp_path / name, stream, shards=10, buffer_bytes=1_000_000, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000  # 600 more index rows, not 12 MB more images


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_worker_processes_shrink_images_in_the_order_of_the_stream(tmp_path):
    class Photos(Stream):
        def stream(self, start=0):
            for number, image in enumerate(super().stream(start), start):
                read = partial(image_bytes, number, size=(40, 30 + number))
                yield image if number == 3 else replace(image, read=read)

    for workers in (1, 3):
        build(tmp_path / str(workers), Photos(), shards=4, max_side=16, workers=workers)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    dataset = open_dataset(tmp_path / "3")
    assert np.minimum(dataset.width, dataset.height).tolist() == [16] * 59
    assert "place 3" in (tmp_path / "3/skipped.jsonl").read_text()


def test_images_that_are_only_copied_stay_in_one_process(tmp_path, monkeypatch):
    def none(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr("data_pipeline.worker_processes._worker_processes", none)
    build(tmp_path / "out", shards=4, workers=3, check="quick")


@pytest.mark.parametrize(
    ("options", "num_images", "shards"),
    [
        ({}, 2500, 3),
        ({}, None, 3),
        ({"shard_images": 100}, 2500, 25),
        ({"shard_bytes": 10_000_000}, 2500, 25),
        ({"shards": 7}, None, 7),
        ({}, 0, 1),
    ],
)
def test_number_of_shards(options, num_images, shards):
    stream = Stream(num_images=num_images, num_bytes=250_000_000)
    assert num_stream_shards(stream, BuildOptions(**options)) == shards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": False}, "--no-shuffle: stream is read as a stream"),
        ({"shard_images": 5}, "--shard-images 5: how many images stream holds is not known"),
        ({"shard_images": 5, "shards": 2}, "--shard-images 5 and --shards 2 are both given"),
        ({"shards": 0}, "--shards 0: give at least 1"),
        ({"buffer_bytes": 0}, "--buffer-bytes 0: give at least 1"),
    ],
)
def test_cuts_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(RefusedInput, match=message):
        build(tmp_path / "out", Stream(num_images=None), **options)
    assert not (tmp_path / "out").exists()


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path):
    archive = layouts.imagenet21k(tmp_path / "in", gzipped=False, images=30)
    archive.write_bytes(archive.read_bytes()[:-60_000])
    (tmp_path / "list").write_text("n00000010\nn00000020\nn00000030\n")
    arguments = ["--source", "imagenet-21k", "--input", str(archive), "--split", "train"]
    arguments += ["--classes", str(tmp_path / "list"), "--buffer-bytes", "1", "--check", "quick"]
    with pytest.raises(RefusedInput, match=r"fall11_whole\.tar is cut short"):
        main([*arguments, "--output", str(tmp_path / "out")])
    assert files_of(tmp_path / "out") == {}


def test_a_stream_without_usable_images_is_refused(tmp_path):
    class Nothing(Stream):
        def stream(self, start=0):
            yield StreamedImage(0, "here", partial(bytes, b"no image in it"))

    with pytest.raises(RefusedInput, match=r"none of the 1 files .* here: not a JPEG"):
        build(tmp_path / "out", Nothing(), shards=3)


def test_shards_of_a_listing_are_cut_otherwise(tmp_path):
    root = layouts.imagenet1k(tmp_path / "in")
    with pytest.raises(RefusedInput, match="--shards 3: imagenet-1k is a listing"):
        build_dataset("imagenet-1k", root, "train", tmp_path / "out", shards=3)
