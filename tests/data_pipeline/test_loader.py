"""From a position to batches: order, pixels, broken images, errors, and no thread left behind."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.data_groups import AugmentConfig, LoaderConfig
from configs.errors import RefusedInput
from data_pipeline import (
    Batch,
    EvalLoader,
    EvalTransform,
    LoadingFailed,
    SampleOrder,
    ShardedDataset,
    TrainLoader,
    TrainTransform,
)
from data_pipeline.broken import BrokenRecord, BrokenShard, add_new_records
from data_pipeline.shard_reader import ShardReader
from tests.data_pipeline.sample_shards import (
    BROKEN,
    encode,
    plain_dataset,
    plain_image,
    write_dataset,
)

SIZE = (4, 5)


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("vitrain-decode")]


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert our_threads() == []


@pytest.fixture
def dataset(tmp_path: Path) -> ShardedDataset:
    """21 one-coloured images, the colour being the row, in uneven shards."""
    return plain_dataset(tmp_path / "plain", [7, 0, 5, 9])


def noise_dataset(folder: Path, count: int = 20) -> ShardedDataset:
    """Images whose crops all differ."""
    rng = np.random.default_rng(0)
    files = [encode(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)) for _ in range(count)]
    return write_dataset(folder, [files[: count // 2], files[count // 2 :]])


def train_loader(dataset: ShardedDataset, **options: Any) -> TrainLoader:
    order = SampleOrder(dataset, num_streams=3, seed=5)
    settings: dict[str, Any] = {
        "transform": TrainTransform(AugmentConfig(), SIZE, seed=5),
        "batch_images": 4,
        "loader": LoaderConfig(threads=2, read_ahead_batches=2),
    }
    return TrainLoader(dataset, order, **(settings | options))


def take(loader: TrainLoader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("images", "labels", "positions", "rows"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# ------------------------------------------------------------------ what is in a batch


def test_batches_follow_the_order(dataset: ShardedDataset) -> None:
    order = SampleOrder(dataset, num_streams=3, seed=5)
    batches = take(train_loader(dataset), 11)  # two epochs and a bit
    for number, batch in enumerate(batches):
        positions = np.arange(4 * number, 4 * number + 4)
        rows = order.rows_at(positions)
        assert batch.positions.tolist() == positions.tolist()
        assert batch.rows.tolist() == rows.tolist()
        assert batch.labels.tolist() == dataset.label[rows].tolist()
        expected = torch.from_numpy(rows).to(torch.uint8).view(4, 1, 1, 1).expand(4, 3, *SIZE)
        assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("read_ahead", [1, 3])
def test_threads_and_read_ahead_do_not_show(tmp_path: Path, threads: int, read_ahead: int) -> None:
    dataset = noise_dataset(tmp_path)
    config = LoaderConfig(threads=threads, read_ahead_batches=read_ahead)
    expected = take(train_loader(dataset, loader=LoaderConfig(threads=3)), 8)
    got = take(train_loader(dataset, loader=config), 8)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_global_batches_have_the_same_pixels_at_any_world_size(
    tmp_path: Path, world_size: int
) -> None:
    dataset = noise_dataset(tmp_path)
    alone = take(train_loader(dataset, batch_images=12), 4)
    shares = [
        take(
            train_loader(dataset, batch_images=12 // world_size, rank=rank, world_size=world_size),
            4,
        )
        for rank in range(world_size)
    ]
    for number, whole in enumerate(alone):
        for rank in range(world_size):
            share = shares[rank][number]
            assert torch.all(share.positions % world_size == rank)
            of_rank = whole.positions % world_size == rank
            for name in ("images", "labels", "positions", "rows"):
                assert torch.equal(getattr(share, name), getattr(whole, name)[of_rank])


def test_a_loader_goes_on_at_any_position(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path)
    undisturbed = take(train_loader(dataset), 9)
    with train_loader(dataset) as first:
        for _ in range(5):
            next(first)
        position = first.position
    assert position == 20
    for a, b in zip(
        take(train_loader(dataset, position=position), 4), undisturbed[5:], strict=True
    ):
        assert_same(a, b)


def test_skip_to_drops_what_was_read_ahead(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path)
    undisturbed = take(train_loader(dataset), 9)
    with train_loader(dataset) as loader:
        assert_same(next(loader), undisturbed[0])
        loader.skip_to(24)
        assert loader.position == 24
        assert_same(next(loader), undisturbed[6])
        loader.skip_to(4)
        assert_same(next(loader), undisturbed[1])
        assert loader.position == 8


def test_a_selection_shows_its_images_only(dataset: ShardedDataset) -> None:
    dataset.shard_path(2).unlink()  # rows 7 to 11: not selected, so not read
    rows = np.array([0, 3, 6, 12, 20])
    batch = take(train_loader(dataset.select(rows), batch_images=5), 1)[0]
    assert sorted(batch.images[:, 0, 0, 0].tolist()) == rows.tolist()
    assert sorted(batch.rows.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(batch.images[:, 0, 0, 0] % 10, batch.labels.to(torch.uint8))


def test_an_order_of_other_images_is_refused(dataset: ShardedDataset) -> None:
    order = SampleOrder(dataset, num_streams=3, seed=0)
    with pytest.raises(RefusedInput, match="other images"):
        TrainLoader(
            dataset.select(np.arange(5)),
            order,
            transform=TrainTransform(AugmentConfig(), SIZE, 0),
            batch_images=2,
        )


def test_to_gives_images_and_labels(dataset: ShardedDataset) -> None:
    batch = take(train_loader(dataset), 1)[0]
    images, labels = batch.to("cpu")
    assert torch.equal(images, batch.images) and torch.equal(labels, batch.labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_survive_their_copies(dataset: ShardedDataset) -> None:
    """The memory of a batch is used again while its copy may still be under way."""
    order = SampleOrder(dataset, num_streams=3, seed=5)
    copies = []
    with train_loader(dataset, batch_images=64) as loader:
        for number in range(50):
            batch = next(loader)
            assert batch.images.is_pinned()
            torch.cuda._sleep(2_000_000)  # the copy waits behind this kernel
            copies.append((number, batch.to("cuda")[0]))
            del batch
    for number, images in copies:
        rows = order.rows_at(np.arange(64 * number, 64 * number + 64))
        assert images[:, 0, 0, 0].cpu().tolist() == rows.tolist()


# ------------------------------------------------------------------ broken images


def broken_dataset(folder: Path, broken: set[int], lengths: tuple[int, ...] = (5, 5, 5)) -> Any:
    files = [BROKEN if row in broken else plain_image(row) for row in range(sum(lengths))]
    edges = np.cumsum([0, *lengths]).tolist()
    return write_dataset(folder, [files[a : a + n] for a, n in zip(edges, lengths, strict=False)])


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_substitute_brings_image_label_and_row(tmp_path: Path, world_size: int) -> None:
    dataset = broken_dataset(tmp_path, {2, 9, 10, 11, 12, 13, 14})
    stand_in = {2: 3, 9: 5} | dict.fromkeys(range(10, 15), 0)
    order = SampleOrder(dataset, num_streams=3, seed=5)
    for rank in range(world_size):
        loader = train_loader(dataset, batch_images=5, rank=rank, world_size=world_size)
        for batch in take(loader, 6 // world_size):
            wanted = order.rows_at(batch.positions.numpy()).tolist()
            shown = [stand_in.get(row, row) for row in wanted]
            assert batch.rows.tolist() == shown
            assert batch.labels.tolist() == [row % 10 for row in shown]
            assert batch.images[:, 1, 2, 3].tolist() == shown


def test_broken_images_are_noted_once(tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, {2, 9})
    with train_loader(dataset, batch_images=15) as loader:
        next(loader)
        found = loader.take_new_broken()
        assert sorted(record.row for record in found) == [2, 9]
        assert {record.shard for record in found} == {"part-000000.tar", "part-000001.tar"}
        next(loader)
        next(loader)
        assert loader.take_new_broken() == []
        assert sorted(record.row for record in loader.broken) == [2, 9]
    with train_loader(dataset, batch_images=15, quarantine=found) as resumed:
        next(resumed)
        assert resumed.take_new_broken() == []
        assert sorted(record.row for record in resumed.broken) == [2, 9]


def test_no_readable_image_ends_training(tmp_path: Path) -> None:
    loader = train_loader(broken_dataset(tmp_path, set(range(15))))
    with pytest.raises(RefusedInput, match="images cannot be read"), loader:
        next(loader)


DAMAGE = ["missing", "cut", "longer", "digest", "file-in-its-way"]


def damage_shard(dataset: ShardedDataset, number: int, how: str, patch: Any) -> None:
    """Spoil a whole shard; a digest is only looked at by who brings shards here, so it is told."""
    path = dataset.shard_path(number)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1500)
    elif how == "longer":
        os.truncate(path, path.stat().st_size + 512)
    elif how == "file-in-its-way":
        path.unlink()
        path.mkdir()
    else:
        read = ShardReader.read

        def told(reader: ShardReader, row: int) -> bytearray:
            if dataset.shard[row] == number:
                raise BrokenShard("its SHA-256 is not the one in the manifest")
            return read(reader, row)

        patch.setattr(ShardReader, "read", told)


def trained_on(dataset: ShardedDataset, world_size: int, stops: list[int]) -> list[Any]:
    """Rows and quarantine after each of 5 global batches of 12, as the ranks put it together.

    `stops` are the steps after which a run is ended and resumed, at the next of the world sizes
    that follow each other: 1, 2, 3, 4, 6, ...
    """
    sizes = [size for size in (1, 2, 3, 4, 6) if size >= world_size] + [1, 2]
    known: dict[int, BrokenRecord] = {}
    history = []
    for start, end in pairwise([0, *stops, 5]):
        size = sizes.pop(0)
        loaders = [
            train_loader(
                dataset,
                batch_images=12 // size,
                rank=rank,
                world_size=size,
                position=12 * start,
                quarantine=list(known.values()),
                loader=LoaderConfig(threads=2, read_ahead_batches=1 + size),
                refuse_alone=False,
            )
            for rank in range(size)
        ]
        for _ in range(start, end):
            batches = [next(loader) for loader in loaders]
            found = [record for loader in loaders for record in loader.take_new_broken()]
            new = add_new_records(known, found)
            shown = sorted(
                (position, row, batch.images[slot].tolist())
                for batch in batches
                for slot, (position, row) in enumerate(
                    zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)
                )
            )
            history.append((shown, new))
        for loader in loaders:
            loader.close()
    return history


@pytest.mark.parametrize("how", DAMAGE)
def test_a_lost_shard_is_the_same_at_every_world_size_and_after_a_resume(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = broken_dataset(tmp_path, {2, 17}, lengths=(9, 6, 10, 11))
    damage_shard(dataset, 1, how, monkeypatch)
    expected = trained_on(dataset, 1, [])
    for world_size in (2, 3, 4, 6):
        assert trained_on(dataset, world_size, []) == expected
    assert trained_on(dataset, 1, [2, 3]) == expected
    assert trained_on(dataset, 3, [1, 4]) == expected

    order = SampleOrder(dataset, num_streams=3, seed=5)
    stand_in = {2: 3, 17: 18} | dict.fromkeys(range(9, 15), 15)
    listed: set[int] = set()
    for step, (shown, new) in enumerate(expected):
        wanted = order.rows_at(np.arange(12 * step, 12 * step + 12)).tolist()
        assert [row for _, row, _ in shown] == [stand_in.get(row, row) for row in wanted]
        # What is listed after a step is what its positions met, though threads have read ahead.
        met = {row for row in wanted if row in stand_in}
        lost = met | (set(range(9, 15)) if met & set(range(9, 15)) else set())
        listed |= lost
        assert {record.row for record in new} <= lost
    assert listed == set(stand_in)  # more than an epoch
    assert sorted(r.row for _, new in expected for r in new) == sorted(stand_in)


def test_past_the_budget_black_images_come_until_all_ranks_stop(tmp_path: Path) -> None:
    """A rank that stopped alone would leave the others waiting, and say nothing."""
    dataset = broken_dataset(tmp_path, set(), lengths=(5, 12, 5))
    dataset.shard_path(1).unlink()
    with train_loader(dataset, batch_images=22, refuse_alone=False) as loader:
        batch = next(loader)
        lost = (batch.rows >= 5) & (batch.rows < 17)
        assert lost.sum() == 12
        assert not batch.images[lost].any()
        assert batch.labels.tolist() == dataset.label[batch.rows.numpy()].tolist()
        assert [record.row for record in loader.take_new_broken()] == list(range(5, 17))
        next(loader)
    with (
        train_loader(dataset, batch_images=22) as loader,
        pytest.raises(RefusedInput, match=r"12 of shard part-000001.tar \(the file is missing\)"),
    ):
        next(loader)


def test_a_checkpoints_list_stays_out_though_the_shard_is_back(tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, set(), lengths=(5, 4, 5))
    with train_loader(dataset, batch_images=14) as loader:
        next(loader)
        listed = [BrokenRecord(row, "part-000001.tar", str(row), "gone") for row in range(5, 9)]
        loader.skip_to(0, listed)
        batch = next(loader)
        assert not set(batch.rows.tolist()) & set(range(5, 9))
        assert loader.broken == listed
        assert loader.take_new_broken() == []


def test_what_threads_met_ahead_is_not_listed_yet(tmp_path: Path) -> None:
    """How far they are ahead depends on the machine; a checkpoint must not."""
    order = SampleOrder(plain_dataset(tmp_path / "sound", [5, 5, 5]), num_streams=3, seed=5)
    row = int(order.rows_at(np.array([2]))[0])
    dataset = broken_dataset(tmp_path / "broken", {row})
    settings = {"batch_images": 1, "loader": LoaderConfig(threads=1, read_ahead_batches=4)}
    with train_loader(dataset, **settings) as loader:
        for expected in ([], [], [row]):
            for pending in loader._threads._pending:
                pending.wait()
            next(loader)
            assert [record.row for record in loader.take_new_broken()] == expected


def test_a_skip_forgets_what_was_met_ahead(tmp_path: Path) -> None:
    order = SampleOrder(plain_dataset(tmp_path / "sound", [5, 5, 5]), num_streams=3, seed=5)
    row = int(order.rows_at(np.array([2]))[0])
    dataset = broken_dataset(tmp_path / "broken", {row})
    settings = {"batch_images": 1, "loader": LoaderConfig(threads=1, read_ahead_batches=4)}
    with train_loader(dataset, **settings) as loader:
        next(loader)
        loader.skip_to(3)
        for _ in range(5):
            next(loader)
        assert loader.take_new_broken() == []
        loader.skip_to(2)
        next(loader)
        assert [record.row for record in loader.take_new_broken()] == [row]


def test_too_large_images_are_broken(tmp_path: Path) -> None:
    large = encode(np.zeros((50, 50, 3), np.uint8))
    dataset = write_dataset(tmp_path, [[plain_image(0), large]])
    config = LoaderConfig(threads=1, max_image_pixels=2_000)
    with train_loader(dataset, loader=config) as loader:
        assert next(loader).rows.tolist() == [0] * 4
        assert "50 x 50 pixels" in loader.broken[0].reason


# ------------------------------------------------------------------ errors and ends


class FailingTransform(TrainTransform):
    """Fails at one position, as a bug of ours would."""

    fails_at = 6

    def __call__(self, image: torch.Tensor, position: int, out: torch.Tensor) -> None:
        if position == self.fails_at:
            raise ZeroDivisionError("a bug")
        super().__call__(image, position, out)


class SlowTransform(TrainTransform):
    """Counts and delays views."""

    seconds = 0.05
    count = 0

    def __call__(self, image: torch.Tensor, position: int, out: torch.Tensor) -> None:
        time.sleep(self.seconds)
        self.count += 1
        super().__call__(image, position, out)


def test_an_error_in_a_thread_names_shard_and_key(dataset: ShardedDataset) -> None:
    row = SampleOrder(dataset, num_streams=3, seed=5).row_at(FailingTransform.fails_at)
    loader = train_loader(dataset, transform=FailingTransform(AugmentConfig(), SIZE, 5))
    with loader:
        assert next(loader).positions.tolist() == [0, 1, 2, 3]
        with pytest.raises(LoadingFailed, match="ZeroDivisionError: a bug") as failed:
            next(loader)
        assert f"{row:08d}" in str(failed.value)
        assert f"part-{dataset.shard[row]:06d}.tar" in str(failed.value)
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
        assert our_threads() == []
        with pytest.raises(RuntimeError, match="closed"):
            next(loader)


def test_read_ahead_is_bounded(dataset: ShardedDataset) -> None:
    transform = SlowTransform(AugmentConfig(), SIZE, 5)
    transform.seconds = 0.0
    with train_loader(dataset, transform=transform) as loader:
        for expected in (8, 12, 16):  # two batches of four ahead of what was taken
            deadline = time.monotonic() + 10
            while transform.count < expected and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.02)
            assert transform.count == expected
            next(loader)


def test_waiting_is_measured(dataset: ShardedDataset) -> None:
    slow = SlowTransform(AugmentConfig(), SIZE, 5)
    with train_loader(dataset, transform=slow) as loader:
        assert next(loader).wait_seconds > 0.03
    with train_loader(dataset) as loader:
        time.sleep(0.3)
        assert next(loader).wait_seconds < 0.03


def test_close_ends_threads_at_once_and_may_be_repeated(dataset: ShardedDataset) -> None:
    slow = SlowTransform(AugmentConfig(), SIZE, 5)
    loader = train_loader(dataset, transform=slow, batch_images=500)
    assert len(our_threads()) == 2
    start = time.perf_counter()
    loader.close()
    loader.close()
    assert time.perf_counter() - start < 2  # the work in the queue would take 25 s
    assert our_threads() == []


def test_threads_end_with_a_consumer_that_fails(dataset: ShardedDataset) -> None:
    def consume() -> None:
        with train_loader(dataset) as loader:
            next(loader)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert our_threads() == []


def test_threads_end_with_a_forgotten_loader(dataset: ShardedDataset) -> None:
    slow = SlowTransform(AugmentConfig(), SIZE, 5)
    loader = train_loader(dataset, transform=slow, batch_images=500)
    assert our_threads()
    del loader
    assert our_threads() == []


def test_threads_end_with_a_consumer_thread_that_dies(dataset: ShardedDataset) -> None:
    def consume() -> None:
        next(train_loader(dataset))

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join(20)
    assert our_threads() == []


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("", marks=pytest.mark.slow),
        "raise RuntimeError('the consumer died')",
        pytest.param("sys.exit(3)", marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_though_nobody_closed(dataset: ShardedDataset, ending: str) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from configs.data_groups import AugmentConfig, LoaderConfig
        from data_pipeline import SampleOrder, TrainLoader, TrainTransform, open_dataset
        dataset = open_dataset({str(dataset.folder)!r})
        loader = TrainLoader(
            dataset,
            SampleOrder(dataset, num_streams=3, seed=0),
            transform=TrainTransform(AugmentConfig(), (4, 4), 0),
            batch_images=2000,
            loader=LoaderConfig(threads=3),
        )
        next(loader)
        print("got one", flush=True)
        {ending}
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        timeout=240,  # importing torch takes a minute beside enough other work
        capture_output=True,
        text=True,
    )
    assert done.stdout == "got one\n"
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(ending, 1), done.stderr


# ------------------------------------------------------------------ evaluation


def eval_loader(dataset: ShardedDataset, **options: Any) -> EvalLoader:
    settings: dict[str, Any] = {
        "transform": EvalTransform((6, 6), 6),
        "batch_images": 4,
        "threads": 2,
    }
    return EvalLoader(dataset, **(settings | options))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("batch_images", [1, 4, 21, 50])
def test_each_image_once_over_all_ranks(
    dataset: ShardedDataset, world_size: int, batch_images: int
) -> None:
    seen, num_batches = [], set()
    for rank in range(world_size):
        loader = eval_loader(dataset, batch_images=batch_images, rank=rank, world_size=world_size)
        batches = list(loader)
        num_batches |= {len(batches), len(loader)}
        for batch in batches:
            assert batch.images.shape == (batch_images, 3, 6, 6)
            real = batch.labels >= 0
            seen += batch.rows[real].tolist()
            assert batch.images[real, 0, 0, 0].tolist() == batch.rows[real].tolist()
            assert torch.equal(batch.labels[real], batch.rows[real] % 10)
            assert set(batch.labels[~real].tolist()) <= {-1}
            assert set(batch.rows[~real].tolist()) <= {-1}
            assert not batch.images[~real].any()
    assert sorted(seen) == list(range(21))
    assert len(num_batches) == 1


def test_evaluation_may_be_repeated_and_left_early(dataset: ShardedDataset) -> None:
    loader = eval_loader(dataset)
    first = list(loader)
    for batch in loader:
        assert_same(batch, first[0])
        break
    del batch
    assert our_threads() == []
    for a, b in zip(loader, first, strict=True):
        assert_same(a, b)


def test_broken_images_are_not_scored(tmp_path: Path) -> None:
    loader = eval_loader(broken_dataset(tmp_path, {2, 9}))
    batches = list(loader)
    labels = torch.cat([batch.labels for batch in batches])
    rows = torch.cat([batch.rows for batch in batches])
    assert (labels >= 0).sum() == 13
    assert set(rows[rows >= 0].tolist()) == set(range(15)) - {2, 9}
    assert not torch.cat([batch.images for batch in batches])[rows < 0].any()
    assert [record.row for record in loader.broken] == [2, 9]
    list(loader)
    assert [record.row for record in loader.broken] == [2, 9]


def test_an_evaluation_of_ruins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="11 of 15 images cannot be read"):
        list(eval_loader(broken_dataset(tmp_path, set(range(11))), batch_images=15))


def test_a_lost_shard_is_not_scored_and_counts_each_image_once(tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, set(), lengths=(5, 6, 4))
    dataset.shard_path(1).unlink()
    lost: list[int] = []
    for rank in range(2):
        loader = eval_loader(dataset, rank=rank, world_size=2, refuse_alone=False)
        shown = torch.cat([batch.rows for batch in loader])
        assert not set(shown.tolist()) & set(range(5, 11))
        lost += [record.row for record in loader.broken]
    assert sorted(lost) == list(range(5, 11))


def test_ranks_may_leave_the_refusal_of_ruins_to_who_evaluates(tmp_path: Path) -> None:
    loader = eval_loader(broken_dataset(tmp_path, set(range(11))), refuse_alone=False)
    list(loader)
    assert len(loader.broken) == 11


def test_an_error_in_an_evaluation_names_shard_and_key(dataset: ShardedDataset) -> None:
    class Failing(EvalTransform):
        def __call__(self, image: torch.Tensor, out: torch.Tensor) -> None:
            raise MemoryError("no room")

    with pytest.raises(LoadingFailed, match=r"image 0000000\d of shard part-000000.tar .*no room"):
        list(eval_loader(dataset, transform=Failing((6, 6), 6)))
