import numpy as np
import pytest
from PIL import Image

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset
from data_pipeline.contact_sheet import choose_rows
from data_pipeline.index import open_dataset
from data_pipeline.order import SampleOrder
from data_pipeline.show import describe, main
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline.sample_shards import BROKEN, plain_image, write_dataset


@pytest.fixture
def photos(tmp_path):
    """Four images in each of three classes."""
    root = layouts.image_folder(tmp_path / "photos")
    build_dataset("image-folder", root, "train", tmp_path / "d", shard_images=5, workers=1)
    return tmp_path / "d"


def test_counts_sizes_and_histogram(photos):
    dataset = open_dataset(photos)
    text = describe(dataset.select(np.flatnonzero(dataset.source_row < 7)))
    lines = text.splitlines()
    assert lines[0].startswith("photos, split train: 12 images of 3 classes in 3 shards")
    spreads = {line.split("  ")[1].strip(): line.split()[-3:] for line in lines[4:10]}
    assert spreads["width (px)"] == ["8", "8", "8"]
    assert spreads["height (px)"] == ["6", "6", "6"]
    assert spreads["shard (images)"] == ["2", "5", "5"]
    assert spreads["class (images)"] == ["0", "3", "4"]
    assert [line.split() for line in lines[-3:]] == [
        ["0", "class0", "4", "#" * 40],
        ["1", "class1", "3", "#" * 30],
        ["2", "class2", "0"],
    ]


def test_of_many_classes_the_largest_and_smallest_are_listed(tmp_path):
    dataset = write_dataset(tmp_path, [[plain_image(n) for n in range(40)]], num_classes=30)
    short, long = describe(dataset), describe(dataset, all_classes=True)
    assert "... 10 more (--all-classes lists them)" in short
    assert len(long.splitlines()) - len(short.splitlines()) == 30 - 21
    assert all(f" {name} " in long for name in dataset.classes)


def test_rows_are_chosen_evenly_over_classes(photos):
    dataset = open_dataset(photos)
    for count in range(1, 13):
        rows = choose_rows(dataset, count, seed=1)
        assert len(set(rows.tolist())) == count
        labels = dataset.label[rows]
        assert (np.diff(labels) >= 0).all()
        assert np.ptp(np.bincount(labels, minlength=3)) <= 1
    assert len(choose_rows(dataset, 100, seed=1)) == 12
    assert choose_rows(dataset, 6, 1).tolist() != choose_rows(dataset, 6, 2).tolist()


def test_the_contact_sheet_shows_the_images(tmp_path, capsys):
    # Images of one grey value each: the tile must have it, whatever the scale.
    write_dataset(tmp_path / "d", [[plain_image(40 + 20 * n) for n in range(3)]], num_classes=3)
    path = tmp_path / "sheet.png"
    assert main([str(tmp_path / "d"), "--contact-sheet", str(path), "--images", "3"]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (6 + 112 + 12 + 6, 6 + 3 * (112 + 6), 3)
    for number in range(3):
        tile = sheet[6 : 6 + 84, 6 + 118 * number : 6 + 118 * number + 112]
        assert (tile == 40 + 20 * number).all()
        below = sheet[6 + 112 :, 6 + 118 * number : 6 + 118 * number + 112]
        assert (below < 100).any()  # the label


def test_augmented_shows_the_views_of_the_config(tmp_path):
    write_dataset(tmp_path / "d", [[plain_image(200, height=60, width=80)]], num_classes=1)
    config = tmp_path / "tiny.yaml"
    config.write_text("stage: pretrain\nmodel: {image_px: 128, patch_px: 16}\n")
    path = tmp_path / "sheet.png"
    options = ["--contact-sheet", str(path), "--augmented"]
    assert main([str(tmp_path / "d"), *options, "--config", str(config)]) == 0
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[:2] == (6 + 128 + 12 + 6, 6 + 6 * (128 + 6))
    assert (sheet[6 : 6 + 96, 6 : 6 + 128] == 200).all()  # the image, 4:3
    for view in range(1, 6):
        left = 6 + view * 134
        assert (sheet[6 : 6 + 128, left : left + 128] == 200).all()  # squares, as the model's input
    assert main([str(tmp_path / "d"), *options]) == 0
    assert Image.open(path).height == 6 + 224 + 12 + 6


def test_the_images_at_positions_are_those_that_a_run_reads(tmp_path):
    greys = [20 + 20 * number for number in range(10)]
    write_dataset(tmp_path / "d", [[plain_image(grey) for grey in greys]], num_classes=1)
    dataset = open_dataset(tmp_path / "d")
    path = tmp_path / "sheet.png"
    options = ["--positions", "13:17", "--streams", "3", "--seed", "5"]
    options += ["--contact-sheet", str(path)]
    assert main([str(tmp_path / "d"), *options]) == 0
    rows = SampleOrder(dataset, num_streams=3, seed=5).rows_at(np.arange(13, 17))
    expected = [greys[row] for row in rows.tolist()]
    sheet = np.asarray(Image.open(path))
    assert [sheet[30, 60 + 118 * number, 0] for number in range(4)] == expected

    # What the run sees of each, beside it: the view at its position.
    config = tmp_path / "tiny.yaml"
    config.write_text("stage: pretrain\nmodel: {image_px: 128, patch_px: 16}\n")
    options += ["--augmented", "--config", str(config)]
    assert main([str(tmp_path / "d"), *options]) == 0
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 6 + 8 * 134
    assert [sheet[64, 70 + 134 * number, 0] for number in range(8)] == np.repeat(
        expected, 2
    ).tolist()


@pytest.mark.parametrize("options", [[], ["--augmented"]])
def test_a_broken_image_is_shown_as_such(tmp_path, options):
    write_dataset(tmp_path / "d", [[plain_image(50), BROKEN]], num_classes=2)
    path = tmp_path / "sheet.png"
    assert main([str(tmp_path / "d"), "--contact-sheet", str(path), *options]) == 0
    sheet = np.asarray(Image.open(path)).reshape(-1, 3)
    assert (sheet == (255, 0, 0)).all(axis=1).any()


REFUSED = {
    "not a dataset": ([".."], "holds no manifest.json"),
    "no images": (["--images", "0"], "--images 0"),
    "no picture to augment": (["--augmented"], "name it with --contact-sheet"),
    "positions without a picture": (["--positions", "0:4"], "add --contact-sheet"),
    "too many positions": (["--positions", "0:9999", "--contact-sheet", "s.png"], "at most 4096"),
    "no streams": (["--streams", "0"], "--streams 0"),
    "needless config": (["--config", "c.yaml"], "add --augmented"),
    "no such folder": (["--contact-sheet", "/nowhere/sheet.png"], "cannot be written"),
    "no such format": (["--contact-sheet", "sheet.xyz"], "cannot be written"),
    "no config": (
        ["--contact-sheet", "s.png", "--augmented", "--config", "/nowhere.yaml"],
        "/nowhere.yaml",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(photos, monkeypatch, case):
    options, message = REFUSED[case]
    monkeypatch.chdir(photos.parent)
    argv = options if case == "not a dataset" else [str(photos), *options]
    with pytest.raises(RefusedInput, match=message):
        main(argv)


@pytest.mark.parametrize("text", ["5", "7:7", "9:3", "a:b", ":4", "-1:4"])
def test_bad_positions_are_refused(photos, capsys, text):
    with pytest.raises(SystemExit) as left:
        main([str(photos), f"--positions={text}"])
    assert left.value.code == 2 and "give A:B" in capsys.readouterr().err
