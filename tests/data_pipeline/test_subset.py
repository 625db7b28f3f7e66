"""Filters on the index: what each chooses, what they promise together, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.build import build_dataset
from data_pipeline.index import open_dataset
from data_pipeline.label_map import read_label_map
from data_pipeline.order import SampleOrder, stable_permutation
from data_pipeline.order import main as print_order
from data_pipeline.show import main as show
from data_pipeline.subset import (
    choice_told,
    class_images,
    shortage_told,
    training_images,
)
from tests.data_pipeline import official_layouts as layouts
from tests.data_pipeline.sample_shards import plain_dataset


def choose(dataset, *, seed=0, candidates=None, **options):
    return training_images(dataset, SubsetConfig(**options), seed=seed, candidates=candidates)


def images(dataset):
    """What identifies images whatever is filtered: their numbers in the source."""
    return set(dataset.source_row.tolist())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """200 images of 10 classes in 4 shards, label = row mod 10."""
    return plain_dataset(tmp_path_factory.mktemp("data"), [60, 50, 40, 50])


def test_no_option_is_the_dataset_itself(data):
    assert choose(data) is data and class_images(data, SubsetConfig()) is data
    assert choose(data, fraction=1.0).filter_digest == ""
    assert choose(data, classes=data.classes) is data
    assert choice_told(data, data) is None


def test_classes_are_chosen_by_name_and_numbered_anew(data):
    chosen = choose(data, classes=("class7", "class2"))
    assert chosen.classes == ("class2", "class7") and chosen.num_classes == 2
    assert chosen.num_images == 40 and np.bincount(chosen.label).tolist() == [20, 20]
    assert (chosen.label == (chosen.source_row % 10 == 7)).all()
    assert data.label.max() == 9  # the whole is as it was
    again = choose(data, classes=("class2", "class7", "class2"))
    assert again.filter_digest == chosen.filter_digest != data.filter_digest
    assert "using 40 of 200 images; 2 classes (the data has 10)" in choice_told(data, chosen)


def test_classes_come_from_a_file_too(data, tmp_path):
    (tmp_path / "names.txt").write_text("class7\n\n class2 \n")
    chosen = choose(data, classes=(f"@{tmp_path / 'names.txt'}",))
    assert chosen.filter_digest == choose(data, classes=("class2", "class7")).filter_digest


def test_a_wordnet_id_is_enough(tmp_path):
    root = layouts.tiny_imagenet(tmp_path / "tin")
    build_dataset("tiny-imagenet", root, "train", tmp_path / "d", workers=1)
    dataset = open_dataset(tmp_path / "d")
    name = dataset.classes[1]
    assert " " in name
    assert choose(dataset, classes=(name.split()[0],)).classes == (name,)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_label_map_merges_and_drops_classes(data, tmp_path, suffix):
    names = {f"class{n}": "odd" if n % 2 else "even" for n in range(9)}
    path = tmp_path / f"map.{suffix}"
    lines = "".join(f"{old}: {new}\n" for old, new in names.items())
    path.write_text(json.dumps(names) if suffix == "json" else lines)
    chosen = choose(data, label_map=path)
    assert chosen.classes == ("even", "odd") and chosen.num_images == 180
    assert (chosen.label == chosen.source_row % 10 % 2).all() and 9 not in chosen.source_row % 10
    only = choose(data, label_map=path, classes=("odd",))
    assert only.classes == ("odd",) and set(only.source_row % 10) == {1, 3, 5, 7}
    assert class_images(data, SubsetConfig(label_map=path)).filter_digest == chosen.filter_digest
    # 80 of 100: as many of each class that was merged, the shuffled lines being interleaved.
    some = choose(data, label_map=path, images_per_class=40)
    assert np.bincount(some.source_row % 10).tolist() == [8, 10, 8, 10, 8, 10, 8, 10, 8]


def test_the_same_images_under_other_classes_are_another_order(data, tmp_path):
    for name, other in (("a", "class0: x\nclass1: y\n"), ("b", "class0: y\nclass1: x\n")):
        (tmp_path / f"{name}.yaml").write_text(other)
    first, second = (choose(data, label_map=tmp_path / f"{name}.yaml") for name in "ab")
    assert images(first) == images(second)
    identities = [SampleOrder(d, num_streams=3, seed=0).identity() for d in (first, second, data)]
    assert len({identity["filter_digest"] for identity in identities}) == 3


def test_names_in_a_label_map_stay_text(tmp_path):
    (tmp_path / "m.yaml").write_text("7: no\nno: 1.50\nnull: 2020-01-01\n")
    assert read_label_map(tmp_path / "m.yaml", "data.label_map =") == {
        "7": "no",
        "no": "1.50",
        "null": "2020-01-01",
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.001, 1.0),
    st.floats(0.001, 1.0),
    st.integers(0, 2**31),
)
def test_a_fraction_is_of_every_class_and_inside_every_larger_one(labels, one, other, seed):
    small, large = (
        fake_choice(labels, seed, fraction=fraction) for fraction in sorted((one, other))
    )
    assert small <= large
    counts = np.bincount(labels)
    for fraction, chosen in zip(sorted((one, other)), (small, large), strict=True):
        expected = [max(1, int(np.floor(fraction * n + 0.5))) if n else 0 for n in counts]
        got = np.bincount(np.array(labels)[sorted(chosen)], minlength=len(counts))
        assert got.tolist() == expected


def fake_choice(labels, seed, **options):
    """Rows that are chosen of a dataset of which only labels are known."""
    columns = SimpleNamespace(label=np.array(labels), source_row=np.arange(len(labels)))
    dataset = SimpleNamespace(
        folder="d",
        **vars(columns),
        num_images=len(labels),
        classes=tuple("abcde"),
        num_classes=5,
        require_single_labels=lambda options: None,
        select=lambda rows: SimpleNamespace(relabel=lambda *_: rows),
    )
    return set(choose(dataset, seed=seed, **options).tolist())


def test_images_per_class_are_nested_and_depend_on_the_seed(data):
    few, more = choose(data, images_per_class=3), choose(data, images_per_class=8)
    assert np.bincount(few.label).tolist() == [3] * 10
    assert images(few) < images(more)
    assert images(few) != images(choose(data, images_per_class=3, seed=1))
    fixed = [choose(data, images_per_class=3, seed=s, subset_seed=5) for s in (0, 1)]
    assert fixed[0].filter_digest == fixed[1].filter_digest
    assert shortage_told(few, 3) is None
    assert "10 classes have fewer than images_per_class = 21" in shortage_told(data, 21)


def test_the_choice_is_the_start_of_each_class_shuffled(data):
    """As docs/data.md has it; published results were trained on images chosen this way."""
    candidates = np.flatnonzero(data.source_row % 7 > 1)
    expected = set()
    for label in range(10):
        members = [row for row in candidates.tolist() if data.label[row] == label]
        members.sort(key=lambda row: data.source_row[row])
        shuffled = stable_permutation(len(members), "images-per-class", 3, label)
        expected |= {int(data.source_row[members[place]]) for place in shuffled[:4]}
    assert images(choose(data, images_per_class=4, seed=3, candidates=candidates)) == expected


def test_the_choice_stays_the_same_whatever_else_is_filtered(data):
    """So that two runs of a study differ in what they are meant to differ in."""
    whole = choose(data, fraction=0.3)
    part = choose(data, fraction=0.3, classes=("class3", "class8"))
    assert images(part) == {row for row in images(whole) if row % 10 in (3, 8)}
    # Of 20 places in a class's line those that are no candidates are simply passed over.
    candidates = np.flatnonzero(data.source_row % 20 < 10)
    assert choose(data, fraction=0.3, candidates=candidates).num_images == 30
    assert images(choose(data, fraction=0.3, candidates=candidates)) <= set(candidates.tolist())


def test_the_choice_does_not_depend_on_how_the_shards_were_shuffled(tmp_path):
    root = layouts.image_folder(tmp_path / "photos")
    for seed in (0, 1):
        build_dataset("image-folder", root, "train", tmp_path / f"{seed}", seed=seed, workers=1)
    first, second = (choose(open_dataset(tmp_path / f"{seed}"), fraction=0.5) for seed in (0, 1))
    assert first.digest != second.digest
    assert images(first) == images(second)


REFUSED = {
    "unknown class": (
        {"classes": ("clas7",)},
        r"data.classes: .* has no class 'clas7' \(did you mean 'class7'\?\)",
    ),
    "many unknown classes": ({"classes": tuple("vwxyz")}, "'v', 'w', 'x' and 2 more"),
    "no such file": ({"classes": ("@nowhere.txt",)}, "data.classes = @nowhere.txt cannot be read"),
    "empty file": ({"classes": ("@empty",)}, "@empty: the file names no class"),
    "no such map": ({"label_map": "nowhere"}, "data.label_map = nowhere cannot be read"),
    "no mapping": ({"label_map": "list"}, "expected lines of the form"),
    "empty map": ({"label_map": "empty"}, "expected lines of the form"),
    "broken yaml": ({"label_map": "broken"}, "data.label_map = broken cannot be read as YAML"),
    "nested map": ({"label_map": "nested"}, "class 'class1' becomes .*give one name"),
    "nothing to become": ({"label_map": "null"}, "class 'class1' becomes ''"),
    "unknown class in the map": ({"label_map": "unknown"}, "data.label_map = unknown: .*'cat'"),
    "class gone by the map": (
        {"label_map": "good", "classes": ("class1",)},
        "data.classes: .* has no class 'class1'; there are 'thing'$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chosen_is_refused_by_name(data, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    files = {
        "empty": "\n",
        "list": "- class1\n",
        "broken": "{",
        "nested": "class1: [a, b]\n",
        "null": "class1:\n",
        "unknown": "cat: animal\nclass1: thing\n",
        "good": "class1: thing\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    options, message = REFUSED[case]
    with pytest.raises(RefusedInput, match=message):
        choose(data, **options)
    if case != "class gone by the map":
        with pytest.raises(RefusedInput, match=message):
            class_images(data, SubsetConfig(**options))


def test_a_choice_of_nothing_is_refused(data, tmp_path):
    small = plain_dataset(tmp_path / "d", [5])
    with pytest.raises(RefusedInput, match=r"is left of 5: .*data\.classes = class7 leaves"):
        choose(small, classes=("class7",))
    (tmp_path / "map.yaml").write_text("class7: cat\n")
    with pytest.raises(RefusedInput, match=r"data\.label_map = .*map\.yaml leaves"):
        class_images(small, SubsetConfig(label_map=tmp_path / "map.yaml"))


def test_show_and_order_take_the_same_options(data, capsys):
    folder = str(data.folder)
    assert show([folder, "--classes", "class7", "class2", "--fraction", "0.5"]) == 0
    chosen = choose(data, classes=("class2", "class7"), fraction=0.5)
    told = capsys.readouterr().out
    assert f"chosen: 20 images of 2 classes, filter digest {chosen.filter_digest}" in told
    assert [line.split()[:3] for line in told.splitlines()[-2:]] == [
        ["0", "class2", "10"],
        ["1", "class7", "10"],
    ]
    show([folder])
    assert "chosen" not in capsys.readouterr().out
    assert print_order([folder, "--images-per-class", "1", "--count", "10", "--seed", "3"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {int(line[2]) for line in lines} == images(choose(data, images_per_class=1, seed=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "1.5"], "--fraction 1.5: .*less than or equal to 1"),
        (["--fraction", "0.5", "--images-per-class", "3"], "are both set; give one"),
        (["--classes", "clas7"], "did you mean 'class7'"),
    ],
)
def test_show_refuses_bad_subsets(data, options, message):
    with pytest.raises(RefusedInput, match=message):
        show([str(data.folder), *options])
