"""Planted copies are found, unrelated images are not; generated scenes stand for photographs."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from configs.errors import RefusedInput
from data_pipeline.dataset import open_dataset
from data_pipeline.exclusion import excluded_rows
from data_pipeline.leaks import LEAKS_SCHEMA, detail_check, record_leaks
from data_pipeline.leaks import record as record_module
from data_pipeline.leaks.record import open_datasets
from data_pipeline.leaks.table import METADATA_FIELD
from data_pipeline.leaks.views import placements, view_spans
from tests.data_pipeline.leak_scenes import cropped, jpeg, scene
from tests.data_pipeline.sample_shards import encode, write_dataset

pytestmark = pytest.mark.timeout(200)


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize([round(side * factor) for side in image.size], Image.BICUBIC)


# 48 px: 5 % of a side are 2.4 px.
COPIES = {
    "compressed": lambda image: jpeg(image, 60),
    "smaller": lambda image: resized(image, 0.6),
    "larger": lambda image: resized(image, 2.5),
    "cropped in the middle": lambda image: cropped(image, 1, 1, 1, 1),
    "cropped at a corner": lambda image: cropped(image, 0, 2, 2, 0),
    "cropped, resized, compressed": lambda image: jpeg(resized(cropped(image, 2, 0, 0, 2), 1.2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "mirrored": lambda image: image.transpose(Image.FLIP_LEFT_RIGHT),
    "mirrored and compressed": lambda image: jpeg(image.transpose(Image.FLIP_LEFT_RIGHT)),
}


def run(tmp_path: Path, train: list[bytes], tests: list[list[bytes]], **options) -> list[dict]:
    """The rows of the table for these files."""
    write_dataset(tmp_path / "train", [train[: len(train) // 2], train[len(train) // 2 :]])
    folders = [tmp_path / f"test{number}" for number in range(len(tests))]
    for folder, files in zip(folders, tests, strict=True):
        write_dataset(folder, [files])
    output = tmp_path / "leaks.parquet"
    settings = {"max_distance": 0.1, "threads": 2, "progress": False} | options
    record_leaks(*open_datasets(tmp_path / "train", folders), output, **settings)
    return pq.ParquetFile(output).read().to_pylist()


@pytest.mark.parametrize("kind", COPIES)
def test_each_kind_of_copy_is_found_and_nothing_else(tmp_path, kind):
    originals = [scene(number) for number in range(12)]
    others = [encode(scene(100 + number)) for number in range(30)]
    train = others[:15] + [encode(COPIES[kind](image)) for image in originals] + others[15:]
    rows = run(tmp_path, train, [[encode(image) for image in originals]])
    assert [(row["train_row"], row["test_row"]) for row in rows] == [(15 + i, i) for i in range(12)]
    assert {row["kind"] for row in rows} == {"mirrored" if "mirrored" in kind else "near"}
    assert all(0 < row["distance"] <= 0.1 for row in rows if "mirrored" != kind)


def test_a_test_image_that_is_a_crop_of_a_training_image_is_found(tmp_path):
    originals = [scene(number) for number in range(12)]
    tests = [encode(cropped(image, 2, 0, 0, 2)) for image in originals]
    rows = run(tmp_path, [encode(image) for image in originals], [tests])
    assert [(row["train_row"], row["test_row"]) for row in rows] == [(i, i) for i in range(12)]


def test_exact_means_equal_pixels_whatever_the_file(tmp_path):
    image, other = scene(1), scene(2)
    almost = np.array(image)
    almost[0, 0] ^= 1
    train = [encode(other), encode(image, "BMP"), encode(almost)]
    rows = run(tmp_path, train, [[encode(image, "PNG")]])
    assert [(row["train_row"], row["kind"]) for row in rows] == [(1, "exact"), (2, "near")]
    assert rows[0]["distance"] == 0


def test_the_table_names_rows_by_shard_and_key_in_every_test_set(tmp_path):
    images = [encode(scene(number)) for number in range(6)]
    rows = run(tmp_path, images, [[images[4], images[0]], [images[4]]])
    assert rows == [
        {
            "train_shard": f"part-00000{train // 3}.tar",
            "train_key": f"{train:08d}",
            "train_row": train,
            "test_folder": str(tmp_path / f"test{folder}"),
            "test_shard": "part-000000.tar",
            "test_key": f"{test:08d}",
            "test_row": test,
            "kind": "exact",
            "distance": 0.0,
        }
        for train, folder, test in ((0, 0, 1), (4, 0, 0), (4, 1, 0))
    ]
    schema = pq.read_schema(tmp_path / "leaks.parquet")
    assert schema.equals(LEAKS_SCHEMA)
    facts = json.loads(schema.metadata[METADATA_FIELD])
    assert facts["format_version"] == 1 and len(facts["tests"]) == 2


def test_the_file_is_the_same_for_any_number_of_threads(tmp_path):
    images = [encode(scene(number % 20)) for number in range(600)]
    tests = [[encode(jpeg(scene(number))) for number in range(20)]]
    one = run(tmp_path / "a", images, tests, threads=1)
    four = run(tmp_path / "b", images, tests, threads=4)
    assert len(one) == 600
    for row in one + four:
        row.pop("test_folder")
    assert one == four


def test_plain_images_are_compared_exactly_only(tmp_path):
    def plain(value, noise):
        pixels = np.full((32, 32, 3), value, np.uint8)
        return encode(pixels + np.random.default_rng(noise).integers(0, 2, (32, 32, 1), np.uint8))

    train = [plain(200, 1), plain(200, 2), plain(90, 3)]
    rows = run(tmp_path, train, [[plain(200, 1), plain(90, 4)]])
    assert [(row["train_row"], row["test_row"], row["kind"]) for row in rows] == [(0, 0, "exact")]


def test_training_can_leave_out_what_the_table_names(tmp_path):
    images = [encode(scene(number)) for number in range(8)]
    run(tmp_path, images, [[encode(jpeg(scene(5))), images[2]]])
    train = open_dataset(tmp_path / "train")
    assert excluded_rows(train, tmp_path / "leaks.parquet").tolist() == [2, 5]
    run(tmp_path / "none", images, [[encode(scene(50))]])
    assert excluded_rows(train, tmp_path / "none" / "leaks.parquet").tolist() == []
    other = write_dataset(tmp_path / "other", [images[:3]])
    with pytest.raises(RefusedInput, match="made for another dataset"):
        excluded_rows(other, tmp_path / "leaks.parquet")


def test_a_placeholder_does_not_fill_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "PAIRS_PER_IMAGE", 3)
    image = encode(scene(1))
    write_dataset(tmp_path / "train", [[image] * 5])
    write_dataset(tmp_path / "test", [[image] * 9 + [encode(scene(2))]])
    output = tmp_path / "leaks.parquet"
    datasets = open_datasets(tmp_path / "train", [tmp_path / "test"])
    summary = record_leaks(*datasets, output, max_distance=0.1, threads=1)
    assert pq.read_metadata(output).num_rows == 15
    assert (summary.num_pairs, summary.num_unlisted, summary.num_leaking) == (15, 30, 5)
    assert "9 of 10 test images have a copy (90.00 %): 9 exact" in summary.text(output)


def photograph(shape: int, surface: int) -> Image.Image:
    """200 px: what a thumbnail shows is set by `shape`, what only a closer look shows by both."""
    coarse = np.asarray(scene(shape, px=200)).astype(np.float32)
    noise = np.random.default_rng(surface).integers(0, 256, (50, 50), dtype=np.uint8)
    grain = np.asarray(Image.fromarray(noise).resize((200, 200), Image.BICUBIC)).astype(np.float32)
    return Image.fromarray(
        np.clip(coarse + 0.3 * (grain[..., None] - 128), 0, 255).astype(np.uint8)
    )


@pytest.mark.parametrize("kind", COPIES)
def test_photographs_alike_only_from_afar_are_told_apart(tmp_path, kind):
    tests = [encode(photograph(number, surface=number)) for number in range(4)]
    copies = [encode(COPIES[kind](photograph(number, number))) for number in range(4)]
    alike = [encode(jpeg(photograph(number, surface=50 + number))) for number in range(4)]
    rows = run(tmp_path, alike + copies, [tests])
    assert [(row["train_row"], row["test_row"]) for row in rows] == [(4 + i, i) for i in range(4)]


def test_without_the_closer_look_they_would_be_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(detail_check, "_MAX_DISTANCE", 2.0)
    tests = [encode(photograph(number, surface=number)) for number in range(4)]
    alike = [encode(jpeg(photograph(number, surface=50 + number))) for number in range(4)]
    assert len(run(tmp_path, alike, [tests])) == 4


def test_details_too_weak_to_tell_do_not_speak_against_a_copy():
    rng = np.random.default_rng(0)
    whole = placements(view_spans()[:1])[0]
    strong, other, weak = (scale * rng.standard_normal((3, 96, 96)) for scale in (60, 60, 4))
    assert detail_check.detail_distance(strong, strong, whole) == pytest.approx(0, abs=1e-6)
    assert detail_check.detail_distance(strong, other, whole) > 0.8
    assert detail_check.detail_distance(strong, weak, whole) == 0
