"""Parquet files as the datasets hub lays them out, and what is refused in them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset
from data_pipeline.index import open_dataset
from data_pipeline.sources import open_source
from data_pipeline.verify import verify_dataset
from tests.data_pipeline.archive_layouts import parquet_file
from tests.data_pipeline.official_layouts import image_bytes

NAMES = ["plane", "car", "bird"]


def streamed(source) -> list[tuple[int, bytes]]:
    return [(image.label, image.read()) for image in source.stream()]


def rows(numbers) -> list[tuple[int, bytes]]:
    return [(number % 3, image_bytes(number)) for number in numbers]


@pytest.mark.parametrize(
    "layout",
    [
        "data/train-0000{}-of-00002.parquet",
        "train-{}.parquet",
        "train/{}.parquet",
        "d/train/{}.parquet",
    ],
)
def test_the_files_of_a_split_are_read_in_order(tmp_path, layout):
    parquet_file(tmp_path / layout.format(0), range(6), names=NAMES)
    parquet_file(tmp_path / layout.format(1), range(6, 11), names=NAMES)
    parquet_file(tmp_path / layout.format(0).replace("train", "test"), range(2), names=NAMES)
    source = open_source("parquet", tmp_path, "train")
    assert source.classes == ("plane", "car", "bird") and source.num_images == 11
    assert streamed(source) == rows(range(11))
    assert open_source("parquet", tmp_path, "test").num_images == 2


def test_one_file_without_names(tmp_path):
    source = open_source("parquet", parquet_file(tmp_path / "my.parquet", range(5)), "train")
    assert (source.name, source.classes) == ("my", ("0", "1", "2"))
    assert streamed(source) == rows(range(5))


def write(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_text_labels_are_numbered_in_sorted_order(tmp_path):
    images = [image_bytes(n) for n in range(3)]
    path = write(tmp_path / "x.parquet", {"jpg": images, "kind": ["dog", "cat", "dog"]})
    source = open_source("parquet", path, "train", label_column="kind")
    assert source.classes == ("cat", "dog")
    assert streamed(source) == [(1, images[0]), (0, images[1]), (1, images[2])]


def test_parquet_builds_and_verifies(tmp_path):
    parquet_file(tmp_path / "in/train-0.parquet", range(25), names=NAMES)
    build_dataset("parquet", tmp_path / "in", "train", tmp_path / "out", shard_images=10)
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.num_images, dataset.num_shards, dataset.classes) == (25, 3, tuple(NAMES))
    assert (dataset.label == dataset.source_row % 3).all()
    assert verify_dataset(tmp_path / "out", decode=True, workers=1).problems == ()


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    good = {"bytes": image_bytes(0), "path": None}
    images = [good, {"bytes": None, "path": "a.jpg"}, good, good, None]
    path = write(
        tmp_path / "x.parquet",
        {"image": pa.array(images, kind), "label": pa.array([0, 1, None, 1, 0])},
    )
    summary = build_dataset("parquet", path, "train", tmp_path / "out")
    assert [(file.where, file.reason) for file in summary.skipped] == [
        (f"{path}: row 1", "the row holds no bytes of an image"),
        (f"{path}: row 2", "label None is not one of 2 classes"),
        (f"{path}: row 4", "the row holds no bytes of an image"),
    ]
    assert sorted(open_dataset(tmp_path / "out").source_row) == [0, 3]


IMAGES = [image_bytes(0)] * 2


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": IMAGES, "a": [0, 1], "b": [0, 1]}, {}, r"2 columns .*a, b.*--label-column"),
        ({"image": IMAGES}, {}, r"0 columns .*none.*--label-column"),
        ({"a": IMAGES, "b": IMAGES, "label": [0, 1]}, {}, r"2 columns .*a, b.*--image-column"),
        ({"image": IMAGES, "label": [0, 1]}, {"label_column": "x"}, r"--label-column x: .* label"),
        ({"image": IMAGES, "label": [-1, -1]}, {}, "holds -1, which marks images without a label"),
        ({"image": IMAGES, "label": pa.array([None] * 2, pa.int64())}, {}, "holds no labels"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, options, message):
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(RefusedInput, match=message):
        open_source("parquet", path, "train", **options)


def test_a_damaged_file_is_refused(tmp_path):
    path = parquet_file(tmp_path / "x.parquet", range(30))
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(RefusedInput, match=r"x\.parquet is not a complete parquet file"):
        open_source("parquet", path, "train")
    path.write_bytes(data[:40] + b"\xff" * 400 + data[440:])
    with pytest.raises(RefusedInput, match=r"x\.parquet cannot be read past row"):
        list(open_source("parquet", path, "train").stream())
