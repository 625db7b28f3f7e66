"""The command: what it says of broken data, what it refuses, and the page it writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from data_pipeline.leaks import progress
from data_pipeline.leaks.__main__ import main
from data_pipeline.leaks.record import open_datasets
from data_pipeline.leaks.report import choose_pairs, write_report
from tests.data_pipeline.leak_scenes import jpeg, scene
from tests.data_pipeline.sample_shards import BROKEN, encode, write_dataset

pytestmark = pytest.mark.timeout(200)


ROOT = Path(__file__).resolve().parents[2]


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
