"""Lists of images that must not be trained on."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import RefusedInput
from configs.subset import SubsetConfig
from data_pipeline.exclusion import METADATA_FIELD, excluded_rows
from data_pipeline.subset import class_images, training_images
from tests.data_pipeline.sample_shards import plain_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 images of 10 classes in 2 shards, label = row mod 10."""
    return plain_dataset(tmp_path_factory.mktemp("data"), [25, 15])


def write_list(path, data, rows, *, digest=None, string=None):
    """A list as data_pipeline.leaks writes it; `rows` may repeat."""
    named = {
        "train_key": pa.array([data.key(r) for r in rows], string or pa.string()),
        "train_shard": pa.array(
            [data.manifest.shards[data.shard[r]].path for r in rows], string or pa.string()
        ),
        "train_row": pa.array(list(rows)),
    }
    table = pa.table(named)
    if digest is not None:
        facts = json.dumps({"format_version": 1, "train_digest": digest})
        table = table.replace_schema_metadata({METADATA_FIELD: facts})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("string", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("with_digest", [True, False])
def test_the_named_images_are_left_out(data, tmp_path, string, with_digest):
    rows = [3, 30, 3, 24, 25]
    digest = data.digest if with_digest else None
    path = write_list(tmp_path / "leaks.parquet", data, rows, digest=digest, string=string)
    assert excluded_rows(data, path).tolist() == [3, 24, 25, 30]
    kept = training_images(data, SubsetConfig(exclude=path), seed=0)
    assert sorted({*range(40)} - {*kept.source_row.tolist()}) == [3, 24, 25, 30]
    assert kept.filter_digest != data.filter_digest and kept.classes == data.classes


def test_a_validation_set_is_not_filtered(data, tmp_path):
    path = write_list(tmp_path / "leaks.parquet", data, [1])
    assert class_images(data, SubsetConfig(exclude=path)) is data


def test_a_list_without_rows_excludes_nothing(data, tmp_path):
    path = write_list(tmp_path / "leaks.parquet", data, [])
    assert training_images(data, SubsetConfig(exclude=path), seed=0) is data


def test_a_key_that_two_shards_have_is_told_apart_by_the_shard(data, tmp_path):
    twin = data.select(np.arange(40))
    twin = type(data)(
        data.folder,
        data.manifest,
        data._table.set_column(
            1, "key", pa.array([f"{row % 5}" for row in range(40)], pa.large_string())
        ),
    )
    path = tmp_path / "leaks.parquet"
    shards = [shard.path for shard in data.manifest.shards]
    pq.write_table(pa.table({"train_shard": [shards[1]], "train_key": ["4"]}), path)
    rows = excluded_rows(twin, path)
    assert set(data.shard[rows]) == {1} and {twin.key(row) for row in rows} == {"4"}


def test_a_fraction_with_and_without_the_list_differs_in_the_listed_images_only(data, tmp_path):
    options = SubsetConfig(images_per_class=2)
    before = training_images(data, options, seed=0)
    leaked = int(before.source_row[0])
    path = write_list(tmp_path / "leaks.parquet", data, [leaked])
    after = training_images(data, options.model_copy(update={"exclude": path}), seed=0)
    was, now = set(before.source_row.tolist()), set(after.source_row.tolist())
    assert was - now == {leaked}
    assert [row % 10 for row in now - was] == [leaked % 10]  # the next of its class moves up


def test_a_list_of_everything_is_refused(data, tmp_path):
    path = write_list(tmp_path / "leaks.parquet", data, range(40))
    with pytest.raises(RefusedInput, match=r"no image is left of 40: data\.exclude"):
        training_images(data, SubsetConfig(exclude=path), seed=0)


def test_a_list_for_another_dataset_is_refused(data, tmp_path):
    by_digest = write_list(tmp_path / "digest.parquet", data, [1], digest="0" * 64)
    with pytest.raises(RefusedInput, match=r"made for another dataset \(data digest 000000"):
        excluded_rows(data, by_digest)
    table = pq.read_table(by_digest).replace_schema_metadata({METADATA_FIELD: "damaged"})
    pq.write_table(table, tmp_path / "damaged.parquet")
    with pytest.raises(RefusedInput, match=r"made for another dataset \(data digest unknown"):
        excluded_rows(data, tmp_path / "damaged.parquet")
    other = plain_dataset(tmp_path / "other", [25, 16])
    by_row = write_list(tmp_path / "rows.parquet", other, [1, 40])
    with pytest.raises(RefusedInput, match=r"of its 2 images .* lacks 1, for example '00000040'"):
        excluded_rows(data, by_row)


def test_what_is_no_list_is_refused(data, tmp_path):
    with pytest.raises(RefusedInput, match=r"nowhere\.parquet cannot be read"):
        excluded_rows(data, tmp_path / "nowhere.parquet")
    (tmp_path / "text").write_text("no Parquet")
    with pytest.raises(RefusedInput, match="text cannot be read as a Parquet file"):
        excluded_rows(data, tmp_path / "text")
    pq.write_table(pa.table({"train_shard": ["a"], "key": ["b"]}), tmp_path / "columns")
    with pytest.raises(RefusedInput, match=r"no column 'train_key', only \['train_shard', 'key'\]"):
        excluded_rows(data, tmp_path / "columns")
    nulls = pa.table({"train_shard": ["a", None], "train_key": ["b", "c"]})
    pq.write_table(nulls, tmp_path / "nulls")
    with pytest.raises(RefusedInput, match="nulls cannot be read"):
        excluded_rows(data, tmp_path / "nulls")
    for shard in ("../" * 9 + "etc/passwd", "s3://x/y.tar"):
        pq.write_table(pa.table({"train_shard": [shard], "train_key": ["b"]}), tmp_path / "away")
        with pytest.raises(RefusedInput, match="made for another dataset"):
            excluded_rows(data, tmp_path / "away")
