"""The order contract of docs/data_loading.md, against a reference written from its text."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import RefusedInput
from data_pipeline import order as order_module
from data_pipeline.order import SampleOrder, main, random_generator, stable_permutation
from tests.data_pipeline.sample_shards import plain_dataset

GOLDEN_RAW = [5594959411162825314, 11325252749763170773]
GOLDEN_PERMUTATION = [0, 7, 5, 1, 4, 6, 3, 2]
GOLDEN_ROWS = [
    [11, 10, 0, 8, 3, 6, 7, 2, 4, 9, 1, 5],
    [1, 11, 8, 0, 10, 5, 3, 7, 6, 2, 9, 4],
]

shard_lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
num_streams = st.integers(1, 12)
seeds = st.integers(0, 2**31)


def images(lengths: list[int]) -> Any:
    """What an order needs to know of a dataset whose shards hold so many images."""
    return SimpleNamespace(images_of_shards=np.array(lengths), digest="d", filter_digest="")


def reference_epoch(lengths: list[int], num_streams: int, seed: int, epoch: int) -> list[int]:
    """Rows of one epoch in order, as design and docs say it, with nothing clever."""

    def shuffled(items: list[int], *key: Any) -> list[int]:
        raw = random_generator(*key).bit_generator.random_raw(len(items))
        return [item for _, item in sorted(zip(raw.tolist(), items, strict=True))]

    line = []
    for shard in shuffled(list(range(len(lengths))), "shards", seed, epoch):
        first = sum(lengths[:shard])
        rows = list(range(first, first + lengths[shard]))
        line += shuffled(rows, "images", seed, epoch, shard)
    spans, total = [], len(line)
    for stream in range(num_streams):
        length = total // num_streams + (1 if stream < total % num_streams else 0)
        spans.append(line[:length])
        line = line[length:]
    assert line == []
    return [spans[q % num_streams][q // num_streams] for q in range(total)]


@settings(max_examples=60, deadline=None)
@given(shard_lengths, num_streams, seeds, st.integers(1, 5))
def test_passages_tell_every_shard_of_every_position(
    lengths: list[int], streams: int, seed: int, world_size: int
) -> None:
    order = SampleOrder(images(lengths), num_streams=streams, seed=seed)
    shard_of = np.repeat(np.arange(len(lengths)), lengths)
    for epoch in range(2):
        start = epoch * sum(lengths)
        read = reference_epoch(lengths, streams, seed, epoch)
        shards = {start + q: int(shard_of[row]) for q, row in enumerate(read)}
        for rank in range(world_size):
            told = {}
            for first, last, shard in order.passages(epoch, rank, world_size).T.tolist():
                assert first <= last
                told |= dict.fromkeys(range(first, last + 1, streams), shard)
            # Of a stream that several ranks read, each is told all positions.
            mine = {p for p in shards if p % world_size == rank}
            assert mine <= told.keys()
            assert told.items() <= shards.items()
            if streams % world_size == 0:
                assert told.keys() == mine


@settings(max_examples=60, deadline=None)
@given(shard_lengths, num_streams, seeds)
def test_equals_the_reference_over_epochs(lengths: list[int], streams: int, seed: int) -> None:
    order = SampleOrder(images(lengths), num_streams=streams, seed=seed)
    total = sum(lengths)
    expected = [row for e in range(3) for row in reference_epoch(lengths, streams, seed, e)]
    assert order.rows_at(np.arange(3 * total)).tolist() == expected
    assert [order.row_at(p) for p in range(total)] == expected[:total]


@settings(max_examples=40, deadline=None)
@given(shard_lengths, num_streams, seeds, st.integers(1, 7), st.integers(0, 3))
def test_every_image_once_an_epoch_at_any_world_size(
    lengths: list[int], streams: int, seed: int, world_size: int, epoch: int
) -> None:
    order = SampleOrder(images(lengths), num_streams=streams, seed=seed)
    total = sum(lengths)
    seen: list[int] = []
    for rank in range(world_size):
        positions = order.positions_of_rank(epoch * total, total, rank, world_size)
        inside = positions[positions < (epoch + 1) * total]
        assert np.all(inside % world_size == rank)
        seen += order.rows_at(inside).tolist()
    assert sorted(seen) == list(range(total))


@settings(max_examples=40, deadline=None)
@given(shard_lengths, seeds, st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 200))
def test_a_global_batch_is_the_same_set_at_any_world_size(
    lengths: list[int], seed: int, world_size: int, batch: int
) -> None:
    order = SampleOrder(images(lengths), num_streams=5, seed=seed)
    start = 12 * batch
    taken = [
        order.positions_of_rank(start, 12 // world_size, rank, world_size)
        for rank in range(world_size)
    ]
    together = np.sort(np.concatenate(taken))
    assert together.tolist() == list(range(start, start + 12))


@settings(max_examples=40, deadline=None)
@given(shard_lengths, num_streams, seeds, st.integers(0, 10_000))
def test_resuming_anywhere_gives_the_same_rows(
    lengths: list[int], streams: int, seed: int, position: int
) -> None:
    going = SampleOrder(images(lengths), num_streams=streams, seed=seed)
    for start in range(0, position % 50, 7):
        going.rows_at(np.arange(start, start + 7))
    fresh = SampleOrder(images(lengths), num_streams=streams, seed=seed)
    positions = np.arange(position, position + 20)
    assert fresh.rows_at(positions).tolist() == going.rows_at(positions).tolist()


def test_a_far_position_costs_one_shuffle_and_one_permutation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    original = stable_permutation

    def counted(count: int, purpose: str, *numbers: int) -> np.ndarray:
        made.append(purpose)
        return original(count, purpose, *numbers)

    monkeypatch.setattr(order_module, "stable_permutation", counted)
    order = SampleOrder(images([10] * 500), num_streams=64, seed=1)
    order.row_at(10**15)
    assert sorted(made) == ["images", "shards"]


@pytest.mark.parametrize(("streams", "world_size"), [(8, 1), (8, 4), (12, 3)])
def test_a_rank_reads_few_shards_at_a_time(streams: int, world_size: int) -> None:
    order = SampleOrder(images([20] * 48), num_streams=streams, seed=3)
    shard = np.repeat(np.arange(48), 20)
    streams_of_rank = streams // world_size
    for rank in range(world_size):
        positions = order.positions_of_rank(0, 48 * 20 // world_size, rank, world_size)
        shards = shard[order.rows_at(positions)]
        # Within 20 rounds a stream reads 20 images: at most two shards.
        for start in range(0, len(shards), 20 * streams_of_rank):
            window = shards[start : start + 20 * streams_of_rank]
            assert len(set(window.tolist())) <= 2 * streams_of_rank


def test_permutations_are_made_once_per_epoch_and_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = stable_permutation

    def counted(count: int, purpose: str, *numbers: int) -> np.ndarray:
        made.append((purpose, numbers))
        return original(count, purpose, *numbers)

    monkeypatch.setattr(order_module, "stable_permutation", counted)
    order = SampleOrder(images([10] * 40), num_streams=8, seed=1)
    for start in range(0, 800, 16):
        order.rows_at(np.arange(start, start + 16))
    # 40 shards and 2 epochs; every span here is five whole shards, so none is needed twice.
    assert len(made) == len(set(made)) == 2 * (40 + 1)


def test_images_are_counted_by_shard_whatever_is_selected(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [4, 3, 5])
    assert dataset.images_of_shards.tolist() == [4, 3, 5]
    assert np.bincount(dataset.shard).tolist() == [4, 3, 5]
    selected = dataset.select(np.array([0, 3, 7, 8, 11]))
    assert selected.images_of_shards.tolist() == [2, 0, 3]
    assert selected.select(np.array([1, 4])).images_of_shards.tolist() == [1, 0, 1]


def test_a_selection_needs_no_tar(tmp_path: Path) -> None:
    dataset = plain_dataset(tmp_path, [4, 3, 5])
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    selected = dataset.select(np.array([1, 5, 6, 11]))
    order = SampleOrder(selected, num_streams=2, seed=0)
    assert order.rows_at(np.arange(4)).tolist() == reference_epoch([1, 2, 1], 2, 0, 0)
    assert order.identity()["filter_digest"] == selected.filter_digest != ""


def test_golden_values() -> None:
    """Any change here breaks every checkpoint: an order of old must be the order of now."""
    raw = random_generator("golden", 1, 2).bit_generator.random_raw(2).tolist()
    assert raw == GOLDEN_RAW
    assert stable_permutation(8, "golden", 1, 2).tolist() == GOLDEN_PERMUTATION
    order = SampleOrder(images([4, 0, 3, 5]), num_streams=3, seed=7)
    assert order.rows_at(np.arange(24)).reshape(2, 12).tolist() == GOLDEN_ROWS


def test_identity_names_what_the_order_depends_on() -> None:
    order = SampleOrder(images([2, 3]), num_streams=4, seed=9)
    assert order.identity() == {
        "manifest_digest": "d",
        "filter_digest": "",
        "num_images": 5,
        "num_streams": 4,
        "seed": 9,
    }


def test_shape_is_kept_and_negative_positions_are_refused() -> None:
    order = SampleOrder(images([5]), num_streams=2, seed=0)
    assert order.rows_at(np.arange(6).reshape(2, 3)).shape == (2, 3)
    assert order.rows_at(np.array([], dtype=np.int64)).shape == (0,)
    with pytest.raises(ValueError, match="-1 is below zero"):
        order.rows_at(np.array([-1]))


def test_impossible_orders_are_refused() -> None:
    with pytest.raises(RefusedInput, match="at least one stream"):
        SampleOrder(images([5]), num_streams=0, seed=0)
    with pytest.raises(RefusedInput, match="streams = 18446744073709551616: give at most"):
        SampleOrder(images([5]), num_streams=2**64, seed=0)
    with pytest.raises(RefusedInput, match="no image"):
        SampleOrder(images([0, 0]), num_streams=1, seed=0)


def test_in21k_sized_set_up_is_cheap() -> None:
    """14 million images in 13,000 shards: an epoch and its first global batch within seconds."""
    order = SampleOrder(images([1077] * 13_000), num_streams=768, seed=0)
    start = time.perf_counter()
    rows = order.rows_at(np.arange(4096))
    seconds = time.perf_counter() - start
    assert len(set(rows.tolist())) == 4096
    assert seconds < 5  # about 0.05 s on one free core


def test_command_prints_the_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = plain_dataset(tmp_path, [4, 3, 5])
    options = ["--seed", "3", "--streams", "5", "--world-size", "2", "--rank", "1"]
    assert main([str(tmp_path), *options, "--start", "10", "--count", "7"]) == 0
    order = SampleOrder(dataset, num_streams=5, seed=3)
    expected = [
        f"{p} part-{dataset.shard[row]:06d}.tar {dataset.key(row)} {dataset.label[row]}"
        for p in range(11, 25, 2)
        for row in [order.row_at(p)]
    ]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    "options",
    [
        ["--rank", "2", "--world-size", "2"],
        ["--world-size", "0"],
        ["--count", "-1"],
        ["--start", "-5"],
    ],
)
def test_command_refuses_impossible_options(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(RefusedInput, match=options[0]):
        main([str(tmp_path), *options])


@pytest.mark.parametrize("option", ["--start", "--count", "--world-size", "--streams"])
def test_numbers_that_no_run_has_are_refused(tmp_path: Path, option: str) -> None:
    plain_dataset(tmp_path, [3])
    with pytest.raises(RefusedInput, match=f"{option.lstrip('-')} .*{2**64}: give at most"):
        main([str(tmp_path), option, str(2**64)])


def test_command_does_not_import_torch_and_refuses_with_exit_code_2(tmp_path: Path) -> None:
    plain_dataset(tmp_path / "data", [3])
    code = (
        "import sys; from data_pipeline.order import main; "
        f"main([{str(tmp_path / 'data')!r}]); "
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
    refused = subprocess.run(
        [sys.executable, "-m", "data_pipeline.order", str(tmp_path / "nothing")],
        cwd=root,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "nothing" in refused.stderr
