"""Foreign shards that are damaged are refused, and so are options that do not fit."""

import tarfile
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from data_pipeline.foreign_index import index_shards
from data_pipeline.index import main
from tests.data_pipeline.foreign_samples import OPTIONS, labelled, write_shards
from tests.data_pipeline.quick_transfers import read_sources_by, transfers_that_try


def damaged_at_the_last_sample(path: Path, damage: str) -> bytes:
    """What tarfile takes for the end of an archive."""
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        header = tar.getmembers()[-2].offset
    return {
        "cut in a header": data[: header + 100],
        "no end": data[:header],
        "bad header": data[:header] + b"\1" * 512 + data[header + 512 :],
    }[damage]


def damaged_tar(folder: Path, damage: str) -> str:
    pattern = write_shards(folder, [labelled(number, cls=0) for number in range(3)])
    path = folder / "theirs-000.tar"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2 - 100])
    elif damage == "garbage":
        path.write_bytes(b"not a tar" * 1000)
    elif damage == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.cls"))
    elif damage == "twice":
        with tarfile.open(path, "a") as tar:
            for _ in range(2):
                tar.addfile(tarfile.TarInfo("a.cls"))
    elif damage == "empty":
        with tarfile.open(path, "w"):
            pass
    else:
        path.write_bytes(damaged_at_the_last_sample(path, damage))
    return pattern


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"theirs-000.tar: not a plain, complete tar file: the blocks that end"),
        ("garbage", "not a plain, complete tar file"),
        ("cut in a header", r"no header at byte \d+ \(truncated header\)"),
        ("no end", "the blocks that end an archive are missing"),
        ("bad header", r"no header at byte \d+ \("),
        ("compressed", r"not a plain, complete tar file: it is compressed \(gzip\)"),
        ("twice", "duplicate file name"),
        ("empty", "the tars hold no samples|no sample can be used"),
    ],
)
def test_damaged_tars_are_refused(tmp_path, damage, message):
    pattern = damaged_tar(tmp_path, damage)
    with pytest.raises(RefusedInput, match=message):
        index_shards(pattern, tmp_path / "i", OPTIONS)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "pipe:cat a.tar"], "commands and chained URLs are never followed"),
        (["--shards", "filecache::s3://b/a.tar"], "commands and chained URLs are never"),
        (["--shards", "https://me:secret@example.org/a.tar"], r"^--shards \.\.\.example\.org/a"),
        (
            ["--shards", "https://example.org/a.tar?sig=secret"],
            "org/a.tar: the manifest would hold",
        ),
        (["--shards", "nosuch://b/a.tar"], "nosuch://b/a.tar cannot be opened"),
        (["--shards", "memory://nowhere/{0..1}.tar"], "there is no file memory://nowhere/0.tar"),
        (["--shards", "memory://nowhere/*.tar"], r"there is no file memory://nowhere/\*.tar"),
        (["--shards", "/nowhere/{00..10}.tar"], "there is no file /nowhere/00.tar"),
        (["--shards", "/"], "/ is not a file"),
        (["--shards", "/nowhere/{00..10"], r"--shards /nowhere/\{00..10: Unbalanced braces"),
        (["--workers", "0"], "--workers 0: give at least 1"),
        (["--classes", "/nowhere"], "--classes /nowhere is neither a text file"),
    ],
)
def test_bad_options_are_refused(tmp_path, monkeypatch, options, message):
    read_sources_by(monkeypatch, transfers_that_try(monkeypatch, 4))
    pattern = write_shards(tmp_path, [labelled(0, cls=0)])
    with pytest.raises(RefusedInput, match=message):
        main(["--shards", pattern, "--output", str(tmp_path / "i"), *options])
