"""Manifest and index: what is written is read, and what does not belong together is refused."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from configs.errors import RefusedInput
from data_pipeline.index import (
    INDEX_SCHEMA,
    Manifest,
    ShardEntry,
    open_dataset,
    read_index,
    write_index,
)
from data_pipeline.location import ShardAccess

SHARDS = (ShardEntry("a.tar", 3, 4000, "aa"), ShardEntry("b.tar", 2, 3000, "bb"))


def table(**changes) -> pa.Table:
    columns = {
        "shard": [0, 0, 0, 1, 1],
        "key": ["n/0", "n/1", "n/2", "é", "n/4"],
        "extension": ["jpg", "png", "jpg", "webp", "JPEG"],
        "offset": [1536, 2560, 3584, 1536, 2560],
        "size": [500, 512, 400, 100, 1],
        "label": [1, 0, 2, 2, 1],
        "width": [8, 7, 6, 5, 4],
        "height": [3, 4, 5, 6, 7],
        "source_row": [3, 0, 4, 2, 1],
    }
    return pa.table({**columns, **changes}, schema=INDEX_SCHEMA)


def write(folder, index=None, **changes) -> Manifest:
    folder.mkdir(exist_ok=True)
    manifest = Manifest.describe(
        identity=("toys", "train"),
        classes=changes.pop("classes", ("cat", "dog", "emu")),
        shards=changes.pop("shards", SHARDS),
        source={"kind": "test"},
        index_digest=write_index(folder, table() if index is None else index),
    )
    manifest = replace(manifest, **changes)
    manifest.save(folder)
    return manifest


def test_what_is_written_is_read(tmp_path):
    manifest = write(tmp_path)
    dataset = open_dataset(str(tmp_path))
    assert dataset.manifest == manifest == Manifest.load(tmp_path)
    for name in ("shard", "offset", "size", "label", "width", "height", "source_row"):
        column = getattr(dataset, name)
        assert_array_equal(column, table()[name].to_pylist())
        assert column.dtype == INDEX_SCHEMA.field(name).type.to_pandas_dtype()
    assert [dataset.key(row) for row in range(5)] == ["n/0", "n/1", "n/2", "é", "n/4"]
    assert dataset.extension(np.int64(4)) == "JPEG"
    assert (dataset.num_images, len(dataset), dataset.num_shards) == (5, 5, 2)
    assert (dataset.num_classes, dataset.classes) == (3, ("cat", "dog", "emu"))
    assert dataset.shard_path(1) == tmp_path / "b.tar"
    assert dataset.filter_digest == ""
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["index.parquet", "manifest.json"]


def test_a_selection_holds_the_rows_it_names(tmp_path):
    write(tmp_path)
    dataset = open_dataset(tmp_path)
    chosen = dataset.select(np.array([0, 2, 3]))
    assert_array_equal(chosen.source_row, [3, 4, 2])
    assert (chosen.key(2), chosen.extension(2), chosen.num_images) == ("é", "webp", 3)
    assert (chosen.num_classes, chosen.num_shards, chosen.digest) == (3, 2, dataset.digest)
    again = chosen.select(np.array([1, 2]))
    assert_array_equal(again.source_row, [4, 2])
    # The identity is that of the images, however they were chosen.
    assert again.filter_digest == dataset.select(np.array([2, 3])).filter_digest
    assert len({d.filter_digest for d in (dataset, chosen, again)}) == 3


@pytest.mark.parametrize("rows", [[], [0, 0], [1, 0], [-1, 2], [4, 5], [[0, 1]]])
def test_impossible_selections_are_refused(tmp_path, rows):
    write(tmp_path)
    with pytest.raises(RefusedInput, match="a selection must"):
        open_dataset(tmp_path).select(np.array(rows))


def test_the_digest_identifies_the_data(tmp_path):
    manifest = write(tmp_path)
    moved = tuple(replace(shard, path=f"/elsewhere/{shard.path}") for shard in SHARDS)
    assert write(tmp_path, shards=moved, name="other").digest == manifest.digest
    relabelled = write(tmp_path, table(label=[1, 0, 2, 2, 0]))
    recut = write(tmp_path, shards=(replace(SHARDS[0], sha256="cc"), SHARDS[1]))
    renamed = write(tmp_path, classes=("cat", "dog", "owl"))
    assert len({m.digest for m in (manifest, relabelled, recut, renamed)}) == 4


def test_the_index_digest_does_not_depend_on_how_it_is_stored(tmp_path):
    one_chunk = write_index(tmp_path, table())
    parts = pa.concat_tables([table().slice(0, 2), table().slice(2)])
    assert write_index(tmp_path, parts) == one_chunk
    assert write_index(tmp_path, table(key=["n", "/0n/1", "n/2", "é", "n/4"])) != one_chunk
    assert read_index(tmp_path)["key"].num_chunks == 1


def edit_manifest(folder, **changes) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps({name: value for name, value in fields.items() if value != "-"}))


DAMAGE = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "holds no manifest.json"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "is not a manifest"),
    "another program's": (lambda f: edit_manifest(f, format="x"), "is not a manifest"),
    "newer": (lambda f: edit_manifest(f, format_version=2), "has format version 2"),
    "field lost": (lambda f: edit_manifest(f, split="-"), "lacks a field.*split"),
    "field added": (lambda f: edit_manifest(f, colour="red"), "one too many.*colour"),
    "class renamed": (lambda f: edit_manifest(f, classes=["a", "b", "c"]), "digest in manifest"),
    "no index": (lambda f: (f / "index.parquet").unlink(), "index.parquet is missing"),
    "index garbage": (lambda f: (f / "index.parquet").write_bytes(b"x"), "cannot be read"),
    "another index": (lambda f: write_index(f, table(size=[1] * 5)), "is not the one"),
    "other columns": (
        lambda f: pq.write_table(table().drop_columns(["key"]), f / "index.parquet"),
        "has the columns",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(tmp_path, damage):
    write(tmp_path)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(RefusedInput, match=message):
        open_dataset(tmp_path)


DISAGREEMENTS = {
    "image count": ({"shards": SHARDS[:1]}, "counts 3 images, index.parquet 5"),
    "unknown shard": ({"index": table(shard=[0, 0, 0, 1, 2])}, "names shard 2"),
    "shard count": ({"index": table(shard=[0, 0, 1, 1, 1])}, "a.tar: manifest.json counts 3"),
    "label": ({"index": table(label=[0, 1, 2, 3, 1])}, "labels 0..3, manifest.json 3 classes"),
    "shards mixed": ({"index": table(shard=[0, 1, 0, 0, 1])}, "not in the order"),
    "overlap": ({"index": table(offset=[1536, 2000, 3584, 1536, 2560])}, "images overlap"),
    "negative": ({"index": table(offset=[-1, 2560, 3584, 1536, 2560])}, "not in the order"),
    "empty": ({"index": table().slice(0, 0), "shards": ()}, "holds no images"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_an_index_that_does_not_fit_is_refused(tmp_path, case):
    changes, message = DISAGREEMENTS[case]
    write(tmp_path, **changes)
    with pytest.raises(RefusedInput, match=message):
        open_dataset(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(RefusedInput, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedInput, match="is a file"):
        open_dataset(tmp_path / "file")


@pytest.mark.parametrize("path", ["pipe:touch owned", "https://example.org/a.tar", "s3://b/a.tar"])
def test_shards_that_are_no_files_are_refused(tmp_path, path):
    write(tmp_path, shards=(replace(SHARDS[0], path=path), SHARDS[1]))
    dataset = open_dataset(tmp_path)
    assert dataset.shard_path(1) == tmp_path / "b.tar"
    with pytest.raises(RefusedInput, match=r"lies outside|runs a command"):
        dataset.shard_path(0)
    allowed = ShardAccess(absolute_shards=True, allow_commands=True, cache_dir=tmp_path)
    asked_for = open_dataset(tmp_path, allowed).select(np.array([0, 3]))
    assert asked_for.shard_location(0) == path
    with pytest.raises(RefusedInput, match="is not a local file"):
        asked_for.shard_path(0)
