"""Labels of foreign shards: where they are found, how they are mapped, what is refused."""

import json
from pathlib import Path

import pytest
import webdataset

from configs.errors import RefusedInput
from data_pipeline.foreign_index import IndexOptions, index_shards
from data_pipeline.index import main, open_dataset
from data_pipeline.verify import verify_dataset
from tests.data_pipeline import foreign_samples
from tests.data_pipeline.foreign_samples import labelled, write_shards
from tests.data_pipeline.official_layouts import image_bytes

samples = foreign_samples.samples


LABELS = {
    "mixed": ([1, "cat"], None, r"numbers in some samples \(1\) and names in others \('cat'\)"),
    "negative": ([0, -1], None, "label -1 is not a class number"),
    "too large": ([0, 3], "a\nb\nc\n", r"label 3 is not a class number 0\.\.2"),
    "unknown name": (["a", "d"], "a\nb\nc\n", r"label 'd' \(1 such\) is not in --classes"),
    "no classes": ([0], "\n", "give every class once"),
    "class twice": ([0], "a\na\n", "give every class once"),
}


@pytest.mark.parametrize("case", LABELS)
def test_impossible_labels_are_refused(tmp_path, case):
    labels, classes, message = LABELS[case]
    samples = [labelled(number, json={"label": label}) for number, label in enumerate(labels)]
    argv = ["--shards", write_shards(tmp_path, samples), "--output", str(tmp_path / "i")]
    if classes is not None:
        (tmp_path / "names.txt").write_text(classes)
        argv += ["--classes", str(tmp_path / "names.txt")]
    with pytest.raises(RefusedInput, match=message):
        main([*argv, "--workers", "1"])
    assert not (tmp_path / "i").exists()


def img2dataset_shards(folder: Path, breeds: list[str]) -> str:
    """As img2dataset writes them: 00000.tar with KEY.jpg, KEY.txt, KEY.json, and files beside."""
    folder.mkdir()
    for shard in range(2):
        lines = []
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for place, breed in enumerate(breeds[shard::2]):
                key = f"{shard:05d}{place:04d}"
                fields = {
                    "url": f"https://example.org/{key}.jpg",
                    "caption": f"a photo of a {breed}",
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "width": 8,
                    "height": 6,
                    "exif": "{}",
                    "breed": breed,  # by --save_additional_columns
                }
                number = shard * 100 + place
                writer.write(
                    {
                        "__key__": key,
                        "jpg": image_bytes(number, size=(8, 6)),
                        "txt": fields["caption"],
                        "json": json.dumps(fields).encode(),
                    }
                )
                lines.append(fields)
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": len(lines)}))
        (folder / f"{shard:05d}.parquet").write_bytes(b"not read")
    return str(folder / "{00000..00001}.tar")


BREEDS = ["pug", "siamese", "boxer", "persian", "iguana", "pug"]  # shard 0 has every second


def test_img2dataset_shards_with_a_label_map(tmp_path):
    pattern = img2dataset_shards(tmp_path / "laion", BREEDS)
    (tmp_path / "map.yaml").write_text("pug: dog\nboxer: dog\nsiamese: cat\npersian: cat\n")
    argv = ["--shards", pattern, "--output", str(tmp_path / "laion"), "--workers", "1"]
    argv += ["--label-field", "breed", "--label-map", str(tmp_path / "map.yaml")]
    assert main(argv) == 0
    dataset = open_dataset(tmp_path / "laion")
    assert dataset.classes == ("cat", "dog")
    expected = [("00000", "0000", 1), ("00000", "0001", 1)]  # the iguana is left out
    expected += [("00001", "0000", 0), ("00001", "0001", 0), ("00001", "0002", 1)]
    found = [(dataset.key(row)[:5], dataset.key(row)[5:], dataset.label[row]) for row in range(5)]
    assert found == expected
    skipped = json.loads((tmp_path / "laion/skipped.jsonl").read_text())
    assert skipped["where"].endswith("00000.tar: 000000002")
    assert skipped["reason"] == "its label is not in the label map"
    assert verify_dataset(tmp_path / "laion", decode=True, workers=1).problems == ()
    # The same map in another order is the same index; another map is not.
    lines = (tmp_path / "map.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "map.yaml").write_text("".join(reversed(lines)))
    assert main(argv) == 0
    (tmp_path / "map.yaml").write_text("pug: dog\n")
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*label_map"):
        main(argv)


def test_open_clip_shards_with_numbers_and_a_label_map(tmp_path):
    """open_clip and CLIP_benchmark: cls beside the image, names of the classes in a text file."""
    samples = [labelled(number, cls=number % 3, txt="a photo") for number in range(6)]
    pattern = write_shards(tmp_path / "tars", samples)
    (tmp_path / "classnames.txt").write_text("tench\ngoldfish\nshark\n")
    names = IndexOptions("in", "train", classes=tmp_path / "classnames.txt", workers=1)
    index_shards(pattern, tmp_path / "whole", names)
    assert open_dataset(tmp_path / "whole").classes == ("tench", "goldfish", "shark")
    (tmp_path / "map.json").write_text('{"0": "bony", "2": "cartilage", "7": "bony"}')
    options = IndexOptions("in", "train", label_map=tmp_path / "map.json", workers=1)
    index_shards(pattern, tmp_path / "mapped", options)
    dataset = open_dataset(tmp_path / "mapped")
    assert dataset.classes == ("bony", "cartilage") and dataset.label.tolist() == [0, 1, 0, 1]
    assert verify_dataset(tmp_path / "mapped", workers=1).problems == ()


def test_labels_by_key_and_in_a_text_member(tmp_path):
    samples = [labelled(number, txt="emu" if number else "cat") for number in range(3)]
    pattern = write_shards(tmp_path / "tars", samples)
    index_shards(pattern, tmp_path / "t", IndexOptions("x", "train", ".txt", workers=1))
    assert open_dataset(tmp_path / "t").classes == ("cat", "emu")
    (tmp_path / "map.yaml").write_text("some/dir.d/00001: cow\nsome/dir.d/00002: bee\n")
    options = IndexOptions("x", "train", "__key__", tmp_path / "map.yaml", workers=1)
    index_shards(pattern, tmp_path / "k", options)
    dataset = open_dataset(tmp_path / "k")
    assert [dataset.class_text(row) for row in range(2)] == ["cow", "bee"]
    for folder in ("t", "k"):
        assert verify_dataset(tmp_path / folder, workers=1).problems == ()


def test_verify_applies_the_map_that_was_given(tmp_path):
    pattern = write_shards(tmp_path / "tars", [labelled(n, cls=n % 2) for n in range(3)])
    (tmp_path / "map.yaml").write_text("0: a\n1: b\n")
    options = IndexOptions("x", "train", label_map=tmp_path / "map.yaml", workers=1)
    index_shards(pattern, tmp_path / "i", options)
    kept = tmp_path / "i/index.label_map.json"
    kept.write_text(kept.read_text().replace('"b"', '"c"'))
    (problem,) = verify_dataset(tmp_path / "i", workers=1).problems
    assert "is not the label map that the index was made with" in problem
    kept.unlink()
    (problem,) = verify_dataset(tmp_path / "i", workers=1).problems
    assert "index.label_map.json cannot be read" in problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-field", "__key__"], "keys are no classes; give with --label-map"),
        (["--label-field", ".txt"], "no .txt beside the image"),
        (["--label-map", "/nowhere"], "--label-map /nowhere cannot be read"),
        (["--label-map", "{map}"], "the first is .*: its label is not in the label map"),
    ],
)
def test_labels_that_cannot_be_had_are_refused(tmp_path, options, message):
    pattern = write_shards(tmp_path / "tars", [labelled(0, cls=0)])
    (tmp_path / "map.yaml").write_text("1: a\n")
    given = [word.replace("{map}", str(tmp_path / "map.yaml")) for word in options]
    with pytest.raises(RefusedInput, match=message):
        main(["--shards", pattern, "--output", str(tmp_path / "i"), "--workers", "1", *given])
    assert not (tmp_path / "i").exists()
