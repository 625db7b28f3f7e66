"""Builds that were split into parts and joined: always the same bytes."""

import pytest
from filelock import FileLock

from configs.errors import RefusedInput
from data_pipeline.build import build_dataset, build_part
from data_pipeline.merge import main as merge_main
from data_pipeline.merge import merge_parts
from data_pipeline.output_folder import Part
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline import photo_builds
from tests.data_pipeline.photo_builds import build_photos, files_of, num_copies

expected = photo_builds.expected
photos = photo_builds.photos


def part_of(photos, output, text, **options):
    options = {"shard_images": 3, "workers": 1, **options}
    return build_part("image-folder", photos, "train", output, Part.parse(text), **options)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_in_any_order_are_joined_to_the_same_bytes(photos, tmp_path, expected, num_parts):
    output = tmp_path / "out"
    for number in range(num_parts, 0, -1):
        summary = part_of(photos, output, f"{number}/{num_parts}")
        assert f"part {number}/{num_parts}" in summary.text()
    summary = merge_parts(output)
    assert files_of(output) == expected
    assert len(summary.skipped) == 1
    assert summary.num_duplicates == num_copies(photos)
    assert "already holds the finished build" in merge_parts(output).text()
    assert "already holds" in part_of(photos, output, "1/2").text()
    assert verify_dataset(output).problems == ()


def test_a_build_without_parts_goes_on_behind_parts(photos, tmp_path, expected):
    part_of(photos, tmp_path / "out", "2/3")
    assert build_photos(photos, tmp_path / "out").num_written > 0
    assert files_of(tmp_path / "out") == expected


def test_missing_parts_are_named(photos, tmp_path):
    part_of(photos, tmp_path / "out", "2/5")
    with pytest.raises(RefusedInput, match=r"4 of 5 shards are not written yet \(numbers 0, 2, 3"):
        merge_parts(tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_part_of_something_else_is_refused(photos, tmp_path):
    part_of(photos, tmp_path / "out", "2/3")
    with pytest.raises(RefusedInput, match=r"unfinished build .*differs: shuffle_seed"):
        part_of(photos, tmp_path / "out", "1/3", seed=4)


def test_a_part_does_not_touch_what_another_is_writing(photos, tmp_path):
    output = tmp_path / "out"
    part_of(photos, output, "1/2")
    theirs = layouts.write(output / ".building/000001.tar.other-7.partial", b"half")
    ours = layouts.write(output / ".building/000002.tar.other-7.partial", b"half")
    part_of(photos, output, "1/2")
    assert theirs.exists() and not ours.exists()


@pytest.mark.parametrize(
    ("held", "started", "is_refused"),
    [
        ("lock", "1/2", True),
        ("lock-1-of-2", "1/2", True),
        ("lock-1-of-2", "2/2", False),
        ("lock-1-of-2", None, True),
    ],
)
def test_who_may_write_beside_whom(photos, tmp_path, monkeypatch, held, started, is_refused):
    monkeypatch.setattr("data_pipeline.output_folder._BEGIN_SECONDS", 0.1)
    output = tmp_path / "out"
    part_of(photos, output, "1/2")

    def start():
        return build_photos(photos, output) if started is None else part_of(photos, output, started)

    with FileLock(output / ".building" / held):
        if is_refused:
            with pytest.raises(RefusedInput, match="another build is writing there"):
                start()
        else:
            start()


def test_merge_without_parts_is_refused(tmp_path, capsys):
    with pytest.raises(RefusedInput, match="holds no parts"):
        merge_main([str(tmp_path / "nothing")])
    assert not (tmp_path / "nothing").exists()
    layouts.image_folder(tmp_path / "in")
    build_dataset("image-folder", tmp_path / "in", "train", tmp_path / "out", workers=1)
    assert merge_main([str(tmp_path / "out")]) == 0
    assert "already holds the finished build" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2"])
def test_parts_are_counted_from_one(text):
    with pytest.raises(RefusedInput, match=r"give I/N with I from 1 to N"):
        Part.parse(text)
