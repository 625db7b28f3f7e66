"""The folder that a build writes into: finished, another's, half done, shared or lost."""

import errno

import pytest
from filelock import FileLock

from configs.errors import RefusedInput
from data_pipeline import build
from data_pipeline.build import main
from tests.data_pipeline import image_folder_builds
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline.image_folder_builds import build_photos, files_of

photos = image_folder_builds.photos


def test_building_again_says_so_and_changes_nothing(photos, tmp_path, capsys):
    argv = ["--source", "image-folder", "--input", str(photos), "--split", "train"]
    argv += ["--output", str(tmp_path / "out"), "--workers", "1"]
    assert main(argv) == 0
    assert "wrote 12 images of 3 classes in 1 shards" in capsys.readouterr().out
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "out").iterdir()}
    assert main(argv) == 0
    assert "already holds the finished build of this: 12 images" in capsys.readouterr().out
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "out").iterdir()}
    assert after == before


@pytest.mark.parametrize(
    ("change", "differing"),
    [({"seed": 1}, "shuffle_seed"), ({"shard_images": 6}, "shard_images"), ({}, "fingerprint")],
)
def test_another_dataset_is_not_overwritten(photos, tmp_path, change, differing):
    build_photos(photos, tmp_path / "out")
    before = files_of(tmp_path / "out")
    if not change:
        layouts.write(photos / "train/class0/new.jpg", layouts.image_bytes(99))
    with pytest.raises(RefusedInput, match=rf"already holds another dataset .*{differing}"):
        build_photos(photos, tmp_path / "out", **change)
    assert files_of(tmp_path / "out") == before


def test_a_finished_build_that_lost_a_shard_is_not_called_finished(photos, tmp_path):
    build_photos(photos, tmp_path / "out")
    (tmp_path / "out/train-000001.tar").unlink()
    with pytest.raises(RefusedInput, match=r"train-000001.tar is missing or has another size"):
        build_photos(photos, tmp_path / "out")


def test_other_files_in_the_output_are_refused_and_kept(photos, tmp_path):
    layouts.write(tmp_path / "out/thesis.tex", b"years of work")
    with pytest.raises(RefusedInput, match=r"holds other files \(such as thesis.tex\)"):
        build_photos(photos, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"thesis.tex": b"years of work"}
    with pytest.raises(RefusedInput, match="is a file"):
        build_photos(photos, tmp_path / "out/thesis.tex")


def test_what_an_interrupted_build_left_is_replaced(photos, tmp_path):
    build_photos(photos, tmp_path / "expected")
    output = tmp_path / "out"
    layouts.write(output / ".building/000007.tar", b"half")
    layouts.write(output / "train-000009.tar", b"renamed before the end")
    layouts.write(output / "index.parquet", b"old")
    build_photos(photos, output)
    assert files_of(output) == files_of(tmp_path / "expected")


@pytest.mark.parametrize(("where", "left"), [("write_shard", []), ("join_shards", [".building"])])
def test_a_build_that_fails_leaves_no_half_dataset(photos, tmp_path, monkeypatch, where, left):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, where, full_disk)
    with pytest.raises(RefusedInput, match=r"cannot be written: .*No space left.* goes on behind"):
        build_photos(photos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == left
    monkeypatch.undo()
    assert build_photos(photos, tmp_path / "out").manifest.num_images == 12
    build_photos(photos, tmp_path / "expected")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_two_builds_do_not_share_a_folder(photos, tmp_path):
    staging = tmp_path / "out/.building"
    staging.mkdir(parents=True)
    with FileLock(staging / "lock"):
        with pytest.raises(RefusedInput, match="another build is writing there"):
            build_photos(photos, tmp_path / "out")
    assert staging.is_dir()
