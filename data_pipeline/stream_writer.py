"""Sends the images of a stream to their shards as they come: one pass, bounded memory.

A stream is sorted by class and cannot be shuffled as a list, so each image goes to a shard drawn by
seed and running number. What waits to be written is bounded in bytes, not in images; when it is
full, every shard gets its part, so a larger buffer means fewer, longer writes. From each of these
moments a killed build goes on (growing_shards.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from data_pipeline.growing_shards import LOCK_FILE, GrowingShards
from data_pipeline.label_sets import LabelSet
from data_pipeline.order import random_generator
from data_pipeline.output_store import LocalStore, OutputStore
from data_pipeline.prepare_image import ImageRecipe, PreparedImage, prepare_content
from data_pipeline.shard_plan import BuildOptions, num_stream_shards
from data_pipeline.shard_record import (
    WrittenShard,
    WrittenShards,
    find_finished,
    recorded_numbers,
)
from data_pipeline.sources.read_ahead import read_ahead
from data_pipeline.sources.stream_source import DamagedSource, StreamedImage, StreamSource
from data_pipeline.worker_processes import num_usable_cores, run_jobs_in_order

_DRAWN_AT_ONCE = 65_536
# Images that a worker process gets at a time; more only wait in memory.
_SENT_AT_ONCE = 16
_REQUESTS_AT_ONCE = 16


def write_stream(
    source: StreamSource,
    options: BuildOptions,
    store: OutputStore,
    growth: Path,
    wanted: dict[int, str | None],
) -> WrittenShards:
    """Read the stream once and write some of its shards with their records.

    Args:
        source: the stream.
        options: how it is cut into shards, and what is done with its images.
        store: where finished shards go.
        growth: folder for shards that are not finished, of this build and these shards alone.
        wanted: numbers of the shards, with names that an earlier start may have given them; those
            that are there are left alone.

    Raises:
        DamagedSource: A file of the source is damaged; nothing of its images is kept.
        RefusedInput: A file of the source cannot be read.
        filelock.Timeout: Another process writes to `growth`.
        OSError: A shard cannot be written.
    """
    there = _finished(store, wanted)
    missing = [number for number in wanted if number not in there]
    if not missing:
        shutil.rmtree(growth, ignore_errors=True)
        return WrittenShards([*there.values()])
    growth.mkdir(parents=True, exist_ok=True)
    with FileLock(growth / LOCK_FILE, timeout=0):
        shards = GrowingShards(growth, missing)
        if not shards.progress.is_complete:
            try:
                _fill(shards, source, options)
            except DamagedSource:
                shutil.rmtree(growth, ignore_errors=True)
                raise
        written = list(shards.finish(store))
        shutil.rmtree(growth, ignore_errors=True)
    done = sorted([*there.values(), *written], key=lambda shard: shard.number)
    return WrittenShards(done, shards.num_added, shards.progress.notices)


def shard_numbers(num_shards: int, seed: int) -> Iterator[int]:
    """The shard of image 0, 1, 2 ... of a stream, without end."""
    bits = random_generator("stream", seed).bit_generator
    while True:
        yield from (bits.random_raw(_DRAWN_AT_ONCE) % np.uint64(num_shards)).tolist()


def _finished(store: OutputStore, wanted: dict[int, str | None]) -> dict[int, WrittenShard]:
    """The shards that an earlier start finished, by number."""
    recorded = sorted(wanted.keys() & recorded_numbers(store))
    # Here they are read and hashed; in an object store each is a request that waits.
    is_local = isinstance(store, LocalStore)
    num_threads = num_usable_cores() if is_local else _REQUESTS_AT_ONCE
    found = read_ahead(lambda n: find_finished(store, n, wanted[n]), recorded, num_threads)
    return {shard.number: shard for shard in found if shard is not None}


@dataclass(frozen=True)
class _Sample:
    """An image on its way to its shard; `content` is its file, or why there is none."""

    row: int
    shard: int
    label: int | LabelSet
    where: str
    content: bytes | OSError


def _fill(shards: GrowingShards, source: StreamSource, options: BuildOptions) -> None:
    """Send the rest of the stream to the shards."""
    position = shards.progress.position
    images = tqdm(
        source.stream(position),
        initial=position,
        total=source.num_images,
        unit=" images",
        # None switches the bar off where standard error is not a terminal.
        disable=None if options.progress else True,
    )
    numbers = shard_numbers(num_stream_shards(source, options), options.seed)
    numbered = zip(images, islice(numbers, position, None), strict=False)
    for sample, image in _prepared(_samples(numbered, position, shards), options):
        shards.add(sample.shard, sample.row, sample.label, sample.where, image)
        position = sample.row + 1
        if shards.waiting_bytes > options.buffer_bytes:
            shards.checkpoint(position)
    shards.checkpoint(position, end=source.notices())


def _samples(
    numbered: Iterable[tuple[StreamedImage, int]], start: int, shards: GrowingShards
) -> Iterator[_Sample]:
    """The images of these shards; the files of others are not read."""
    for row, (image, number) in enumerate(numbered, start):
        if number in shards:
            yield _Sample(row, number, image.label, image.where, _content(image))


def _prepared(
    samples: Iterable[_Sample], options: BuildOptions
) -> Iterator[tuple[_Sample, PreparedImage | str]]:
    """The images as they go into the shards, in their order.

    Worker processes decode where nearly every image has to be; to send them images that are only
    copied would cost more than it saves.
    """
    num_workers = (options.workers or num_usable_cores()) if options.decodes_all else 1
    prepare = partial(_prepare_some, recipe=options)
    for some in run_jobs_in_order(prepare, _batched(samples), num_workers):
        yield from some


def _prepare_some(
    samples: list[_Sample], recipe: ImageRecipe
) -> list[tuple[_Sample, PreparedImage | str]]:
    return [
        (replace(sample, content=b""), prepare_content(sample.content, recipe))
        for sample in samples
    ]


def _batched(samples: Iterable[_Sample]) -> Iterator[list[_Sample]]:
    rest = iter(samples)
    while batch := list(islice(rest, _SENT_AT_ONCE)):
        yield batch


def _content(image: StreamedImage) -> bytes | OSError:
    try:
        return image.read()
    except OSError as error:
        return error
