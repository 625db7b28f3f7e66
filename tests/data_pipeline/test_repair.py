"""Repair: what is lost goes, everything else stays byte for byte."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenRecord
from data_pipeline.dataset import open_dataset
from data_pipeline.manifest import Manifest
from data_pipeline.repair import main, repair_dataset
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import damaged_dataset
from tests.data_pipeline.damaged_dataset import cut, files, overwrite, spoil, two_images, unlink
from tests.data_pipeline.sample_label_sets import label_set_dataset
from tests.data_pipeline.sample_shards import plain_dataset

built = damaged_dataset.built
dataset = damaged_dataset.dataset


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Label and bytes of every image, by key, read through the index."""
    opened = open_dataset(folder)
    found = {}
    for row in range(opened.num_images):
        with open(opened.shard_path(opened.shard[row]), "rb") as file:
            file.seek(int(opened.offset[row]))
            data = file.read(int(opened.size[row]))
        found[opened.key(row)] = (int(opened.label[row]), data)
    return found


def in_tars(folder: Path) -> dict[str, bytes]:
    """Every member of every tar, as any tool reads it."""
    members = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar}
    return members


def entry(folder: Path) -> set[int]:
    opened = open_dataset(folder)
    overwrite(folder / "train-000000.tar", int(opened.offset[2]) - 512, b"another name")
    return {2}


def label(folder: Path) -> set[int]:
    opened = open_dataset(folder)
    start = int(opened.offset[4]) + -(-int(opened.size[4]) // 512) * 512
    overwrite(folder / "train-000000.tar", start + 512, b"9")
    return {5}


DAMAGES: list[Callable[[Path], set[int]]] = [cut, unlink, two_images, entry, label]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_lost_goes_and_the_rest_stays(dataset, damage, capsys) -> None:
    before, members = contents(dataset), in_tars(dataset)
    keys = list(before)
    lost = {keys[row] for row in damage(dataset)}

    found = files(dataset)
    assert main([str(dataset), "--dry-run", "--max-lost", "1"]) == 1
    assert f"damaged: would drop {len(lost)} of 30 images" in capsys.readouterr().out
    assert files(dataset) == found

    assert main([str(dataset), "--max-lost", "1"]) == 0
    out = capsys.readouterr().out
    assert f"repaired: dropped {len(lost)} of 30 images" in out
    assert "cannot go on with these data" in out
    assert contents(dataset) == {key: before[key] for key in keys if key not in lost}
    assert in_tars(dataset) == {k: v for k, v in members.items() if k.split(".")[0] not in lost}
    assert verify_dataset(dataset, decode=True, workers=1).problems == ()
    listed = [json.loads(line) for line in (dataset / "repaired.jsonl").read_text().splitlines()]
    assert {BrokenRecord(**line).key for line in listed} == lost
    assert all(line["reason"] for line in listed)
    assert not (dataset / ".repair").exists()
    assert main([str(dataset)]) == 0
    assert capsys.readouterr().out.startswith(f"sound: {30 - len(lost)} images")


def test_label_sets_stay_with_their_images(tmp_path) -> None:
    opened = label_set_dataset(tmp_path / "d")
    sets = {opened.key(row): opened.label_sets.of_row(row) for row in range(opened.num_images)}
    spoil(opened.folder, 3)
    with open(opened.shard_path(opened.shard[7]), "r+b") as file:
        place = file.read().index(sets[opened.key(7)].as_json(), int(opened.offset[6]))
        file.seek(place + len('{"positive":['))
        file.write(b"9")
    result = repair_dataset(opened.folder)
    assert [(record.row, record.reason.split(":")[0]) for record in result.lost] == [
        (3, "it does not decode"),
        (7, "its label in the tar is not the one in the index"),
    ]
    for record in result.lost:
        del sets[record.key]
    after = open_dataset(opened.folder)
    kept = {after.key(row): after.label_sets.of_row(row) for row in range(after.num_images)}
    assert kept == sets
    assert verify_dataset(opened.folder, decode=True, workers=1).problems == ()


def test_the_manifest_remembers_every_repair(dataset) -> None:
    first = Manifest.load(dataset)
    spoil(dataset, 0)
    repair_dataset(dataset)
    second = Manifest.load(dataset)
    spoil(dataset, 1)
    repair_dataset(dataset)
    third = Manifest.load(dataset)
    assert third.source["repairs"] == [
        {"digest_before": first.digest, "images_dropped": 1},
        {"digest_before": second.digest, "images_dropped": 1},
    ]
    assert len({first.digest, second.digest, third.digest}) == 3
    assert len((dataset / "repaired.jsonl").read_text().splitlines()) == 2
    # Shards without damage are not touched.
    assert third.shards[1:] == first.shards[1:]


def test_damage_outside_the_images_is_undone_byte_for_byte(dataset, capsys) -> None:
    before = files(dataset)
    size = (dataset / "train-000003.tar").stat().st_size
    overwrite(dataset / "train-000003.tar", size - 10, b"garbage")
    assert main([str(dataset)]) == 0
    out = capsys.readouterr().out
    assert "restored byte for byte" in out and "the data are as they were built" in out
    assert {n: d for n, d in files(dataset).items() if n != "index.parquet"} == {
        n: d for n, d in before.items() if n != "index.parquet"
    }
    assert verify_dataset(dataset, workers=1).problems == ()


def test_a_picture_that_changed_but_decodes_is_kept_and_said(dataset, capsys) -> None:
    opened = open_dataset(dataset)
    file = (dataset / "train-000000.tar").read_bytes()
    table = file.index(b"\xff\xdb", int(opened.offset[3]))
    overwrite(dataset / "train-000000.tar", table + 10, b"\x63")
    assert main([str(dataset)]) == 0
    out = capsys.readouterr().out
    assert "its SHA-256 is not the one in manifest.json; 0 of its 8 images are lost" in out
    assert "if a picture has changed, nothing shows which" in out
    assert not (dataset / "repaired.jsonl").exists()
    assert verify_dataset(dataset, decode=True, workers=1).problems == ()


def test_a_sound_dataset_is_left_alone(dataset, capsys) -> None:
    before = files(dataset)
    assert main([str(dataset)]) == 0
    assert capsys.readouterr().out.startswith("sound: 30 images of 3 classes in 4 shards")
    assert files(dataset) == before
    assert not (dataset / ".repair").exists()


def test_too_much_loss_is_refused_and_changes_nothing(dataset) -> None:
    unlink(dataset)
    before = files(dataset)
    with pytest.raises(RefusedInput, match=r"8 of 30 images are lost, more than --max-lost 0\.1"):
        repair_dataset(dataset)
    assert files(dataset) == before
    for path in dataset.glob("*.tar"):
        path.unlink()
    with pytest.raises(RefusedInput, match="no image is left"):
        repair_dataset(dataset, max_lost_fraction=1.0)


def test_what_cannot_be_repaired_is_refused(dataset, tmp_path, monkeypatch) -> None:
    with pytest.raises(RefusedInput, match="does not exist"):
        repair_dataset(tmp_path / "nothing")
    with pytest.raises(RefusedInput, match="--workers 0"):
        main([str(dataset), "--workers", "0"])
    with pytest.raises(RefusedInput, match="--max-lost 2"):
        main([str(dataset), "--max-lost", "2"])

    manifest = (dataset / "manifest.json").read_text()
    fields = json.loads(manifest)
    (dataset / "manifest.json").write_text(json.dumps({**fields, "foreign": True}))
    with pytest.raises(RefusedInput, match="written elsewhere"):
        repair_dataset(dataset)
    fields["shards"][1]["path"] = "../train-000001.tar"
    (dataset / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(RefusedInput, match=r"names the shard '\.\./train-000001\.tar'"):
        repair_dataset(dataset)
    (dataset / "manifest.json").write_text(manifest)
    (dataset / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(RefusedInput, match=r"index\.parquet cannot be read"):
        repair_dataset(dataset)


def test_a_dataset_of_others_members_is_not_mistaken_for_ours(tmp_path) -> None:
    """Tars without label members: every sample differs from what the index expects."""
    folder = tmp_path / "d"
    plain_dataset(folder, [4, 4])
    result = repair_dataset(folder, dry_run=True)
    assert len(result.lost) == 8
    assert np.all(["index expects" in record.reason for record in result.lost])


@pytest.mark.integration
def test_the_command_and_its_exit_codes(dataset) -> None:
    spoil(dataset, 0)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data_pipeline.repair", str(dataset), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert run("--dry-run").returncode == 1
    assert run().returncode == 0
    assert run("--dry-run").returncode == 0
    (dataset / "manifest.json").unlink()
    refused = run()
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
