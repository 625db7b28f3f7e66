"""Planted copies are found, unrelated images are not; generated scenes stand for photographs."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from configs.errors import RefusedInput
from data_pipeline.dataset import open_dataset
from data_pipeline.exclusion import excluded_rows
from data_pipeline.leaks import LEAKS_SCHEMA, detail_check, progress, record_leaks
from data_pipeline.leaks import record as record_module
from data_pipeline.leaks.__main__ import main
from data_pipeline.leaks.perceptual_hash import MAX_BITS, HashIndex, hash_codes
from data_pipeline.leaks.pixel_check import pixel_distances
from data_pipeline.leaks.record import open_datasets
from data_pipeline.leaks.report import choose_pairs, write_report
from data_pipeline.leaks.table import METADATA_FIELD
from data_pipeline.leaks.views import placements, resampling, view_spans
from tests.data_pipeline.sample_shards import BROKEN, encode, write_dataset

pytestmark = pytest.mark.timeout(200)
ROOT = Path(__file__).resolve().parents[2]


def scene(number: int, px: int = 48) -> Image.Image:
    """A picture with structure at every scale, as photographs have; seeded by its number."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((px, px, 3))
    for cells, strength in ((2, 50), (4, 40), (8, 30), (16, 15)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += strength * (np.asarray(coarse.resize((px, px), Image.BICUBIC)) / 128.0 - 1)
    return Image.fromarray(np.clip(pixels + 110, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 75) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality))).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize([round(side * factor) for side in image.size], Image.BICUBIC)


def cropped(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    return image.crop((left, top, image.width - right, image.height - bottom))


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


def test_broken_images_are_counted_and_passed_over(tmp_path, capsys):
    write_dataset(tmp_path / "train", [[BROKEN, encode(scene(1))]])
    write_dataset(tmp_path / "test", [[BROKEN, BROKEN, encode(scene(1))]])
    assert main(arguments(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "1 of 2 training images show a test image" in text
    assert "unreadable, so not compared: 1 training images, 2 test images" in text


def test_a_test_set_of_which_nothing_can_be_read_is_refused(tmp_path):
    write_dataset(tmp_path / "train", [[encode(scene(1))]])
    write_dataset(tmp_path / "test", [[BROKEN, BROKEN]])
    with pytest.raises(
        RefusedInput, match=r"--test .*/test: none of its 2 images can be read.*verify"
    ):
        main(arguments(tmp_path))
    assert not list(tmp_path.glob("leaks*"))


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


def test_a_log_gets_lines_with_rate_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.ReadProgress("train", 10_000) as done:
        for _ in range(3):
            now[0] += 40.0
            done.add(2_000, "7 leaks")
    assert capsys.readouterr().err == (
        "train: 4,000 of 10,000 images, 50 images/s, 02:00 left, 7 leaks\n"
    )
    with progress.ReadProgress("train", 10_000, shown=False) as done:
        now[0] += 1000.0
        done.add(10_000)
    assert capsys.readouterr().err == ""


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


def test_a_missing_shard_is_reported_and_the_others_are_searched(tmp_path, capsys):
    write_dataset(tmp_path / "train", [[encode(scene(1))], [encode(scene(2)), encode(scene(3))]])
    write_dataset(tmp_path / "test", [[encode(scene(1))], [encode(scene(2))]])
    (tmp_path / "train" / "part-000001.tar").unlink()
    page = tmp_path / "leaks.html"
    assert main(arguments(tmp_path, "--report", str(page))) == 0
    text = capsys.readouterr().out
    assert "1 of 3 training images show a test image" in text
    assert "unreadable, so not compared: 2 training images, 0 test images" in text
    assert "the first unreadable: image 00000001 of shard part-000001.tar: the file is" in text


def test_a_training_set_of_which_nothing_can_be_read_leaves_no_file(tmp_path):
    write_dataset(tmp_path / "train", [[encode(scene(1))], [encode(scene(2))]])
    write_dataset(tmp_path / "test", [[encode(scene(1))]])
    for shard in (tmp_path / "train").glob("*.tar"):
        shard.unlink()
    with pytest.raises(RefusedInput, match=r"--train .*: none of its 2 images.*is missing"):
        main(arguments(tmp_path))
    assert not list(tmp_path.glob("leaks*"))


def test_a_shard_lost_before_the_page_is_written_is_told_on_it(tmp_path):
    write_dataset(tmp_path / "train", [[encode(scene(1))]])
    write_dataset(tmp_path / "test", [[encode(jpeg(scene(1)))]])
    assert main(arguments(tmp_path)) == 0
    (tmp_path / "test" / "part-000000.tar").unlink()
    page = tmp_path / "leaks.html"
    datasets = open_datasets(tmp_path / "train", [tmp_path / "test"])
    assert write_report(page, tmp_path / "leaks.parquet", *datasets, ["summary"], 10) == 1
    assert "<em>unreadable: " in page.read_text() and page.read_text().count("<img") == 1


def arguments(folder: Path, *more: str) -> list[str]:
    fixed = ["--train", f"{folder}/train", "--test", f"{folder}/test", "--threads", "1"]
    return [*fixed, "--output", f"{folder}/leaks.parquet", *more]


def test_the_page_needs_no_other_file_and_runs_no_name(tmp_path):
    evil = tmp_path / "<script>alert(1)</script>"
    write_dataset(evil / "train", [[encode(scene(1)), encode(scene(3, px=400))]])
    write_dataset(evil / "test", [[encode(scene(3, px=400)), encode(scene(1))]])
    page = tmp_path / "leaks.html"
    assert main(arguments(evil, "--report", str(page))) == 0
    text = page.read_text()
    assert text.count("<figure>") == 2 and text.count('src="data:image/') == 4
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "http:" not in text and "https:" not in text and "default-src 'none'" in text
    assert not list(tmp_path.glob("*.partial"))


def test_the_page_shows_every_kind_from_doubtful_to_clear():
    kinds = ["exact"] * 50 + ["near"] * 50 + ["mirrored"] * 2
    distances = [0.0] * 50 + [number / 500 for number in range(50)] + [0.02, 0.05]
    rows = choose_pairs(kinds, distances, 22).tolist()
    assert rows[:2] == [101, 100]
    assert sum(kinds[row] == "near" for row in rows) == 10
    assert (rows[2], rows[11]) == (99, 50)  # both ends
    assert sorted(choose_pairs(kinds, distances, 1000).tolist()) == list(range(102))
    assert choose_pairs([], [], 10).tolist() == []


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


REFUSED = {
    "train is no dataset": (["--train", "{}/nowhere"], "nowhere does not exist"),
    "test is the training set": (["--test", "{}/train"], "holds the same data as --train"),
    "test twice": (["--test", "{}/test"], "holds the same data as --test"),
    "no folder": (["--output", "{}/no/leaks.parquet"], "there is no folder"),
    "a folder": (["--output", "{}/train"], "is a folder; name a file"),
    "no folder for the page": (["--report", "{}/no/leaks.html"], "--report .* no folder"),
    "one name for both": (["--report", "{}/leaks.parquet"], "name two files"),
    "distance": (["--max-distance", "0.7"], "a number from 0 to 0.5"),
    "no distance": (["--max-distance", "nan"], "a number from 0 to 0.5"),
    "threads": (["--threads", "0"], "--threads 0"),
    "pairs": (["--report-pairs", "0"], "--report-pairs 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_before_anything_is_read(tmp_path, case):
    # No image of these can be read, so reading would fail with another message.
    for number, name in enumerate(("train", "test")):
        write_dataset(tmp_path / name, [[encode(scene(number))]])
        (tmp_path / name / "part-000000.tar").unlink()
    options, message = REFUSED[case]
    with pytest.raises(RefusedInput, match=message):
        main(arguments(tmp_path, *(option.format(tmp_path) for option in options)))


def test_help_does_not_wait_for_torch():
    program = (
        "import sys, runpy; sys.argv = ['leaks', '--help']\n"
        "try: runpy.run_module('data_pipeline.leaks', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules, 'faiss' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert "--max-distance" in done.stdout and done.stdout.endswith("False False\n"), done.stderr


def test_the_index_finds_what_comparing_with_everything_finds():
    rng = np.random.default_rng(0)
    entries = rng.integers(0, 256, (3000, 8), dtype=np.uint8)
    flips = np.zeros((200, 64), np.uint8)
    for number in range(200):  # 0 to 19 bits, so on both sides of the limit
        flips[number, rng.permutation(64)[: number % 20]] = 1
    queries = entries[:200] ^ np.packbits(flips, axis=1)
    index = HashIndex()
    index.add(entries)
    found = set(zip(*(values.tolist() for values in index.search(queries)), strict=True))
    bits = np.bitwise_count(queries[:, None] ^ entries[None]).sum(axis=2)
    near = np.argwhere(bits <= MAX_BITS).tolist()
    assert found == {(query, entry, int(bits[query, entry])) for query, entry in near}
    assert len(near) >= 120


def thumbnails(*images: Image.Image) -> np.ndarray:
    small = [np.asarray(image.resize((32, 32), Image.BILINEAR)) for image in images]
    return np.stack(small).transpose(0, 3, 1, 2)


def test_codes_do_not_change_with_brightness_and_contrast():
    pixels = thumbnails(*(scene(number) for number in range(20))).astype(np.float32)
    dim = (pixels * 0.5 + 30).astype(np.uint8)
    bits = np.bitwise_count(hash_codes(pixels.astype(np.uint8)) ^ hash_codes(dim)).sum(axis=2)
    assert bits.max() <= 3
    assert hash_codes(dim, num_views=1).shape == (20, 1, 8)


def test_views_resample_what_their_spans_say():
    ramp = np.arange(32, dtype=np.float32)
    for span in view_spans().reshape(-1, 2):
        got = resampling(span) @ ramp
        expected = span[0] + (np.arange(32) + 0.5) * (span[1] - span[0]) / 32 - 0.5
        inside = (expected >= 0) & (expected <= 31)
        assert np.allclose(got[inside], expected[inside], atol=1e-3)
        assert inside.sum() >= 26
    assert np.array_equal(resampling(view_spans()[0, 0]), np.eye(32, dtype=np.float32))


def test_alignment_finds_the_crop_from_the_wrong_start():
    images = [scene(number, px=64) for number in range(20)]
    train = thumbnails(*(cropped(image, 0, 1, 3, 2) for image in images))
    test = thumbnails(*images)
    start = placements(np.repeat(view_spans()[:1], 20, axis=0))
    assert pixel_distances(train, test, start)[0].max() < 0.02
    assert pixel_distances(train, np.roll(test, 1, axis=0), start)[0].min() > 0.3
    assert pixel_distances(train[:0], test[:0], start[:0])[0].shape == (0,)
