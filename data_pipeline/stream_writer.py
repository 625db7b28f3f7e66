"""Sends the images of a stream to their shards as they come: one pass, bounded memory.

A stream is sorted by class and cannot be shuffled as a list, so each image goes to a shard drawn by
seed and running number. What waits to be written is bounded in bytes, not in images; when it is
full, every shard gets its part, so a larger buffer means fewer, longer writes.

All shards end together, so a stream that is interrupted begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.errors import RefusedInput
from data_pipeline.label_sets import LabelSet
from data_pipeline.order import random_generator
from data_pipeline.output_store import LocalStore, OutputStore
from data_pipeline.prepare_image import ImageRecipe, PreparedImage, prepare_content
from data_pipeline.shard_plan import BuildOptions
from data_pipeline.shard_record import WrittenShard, find_finished, staged_tar
from data_pipeline.shard_samples import ShardSamples
from data_pipeline.sources.stream_source import StreamedImage, StreamSource
from data_pipeline.worker_processes import num_usable_cores, run_jobs_in_order

_DRAWN_AT_ONCE = 65_536
# Images that a worker process gets at a time; more only wait in memory.
_SENT_AT_ONCE = 16


def write_stream(
    source: StreamSource,
    options: BuildOptions,
    store: OutputStore,
    num_shards: int,
    named: dict[int, str],
) -> list[WrittenShard]:
    """Read the stream once and write its shards and their records, unless all are there.

    `named` are names that an earlier start gave to finished shards.

    Raises:
        RefusedInput: A file of the source is damaged, or the output is not a local folder.
        OSError: A shard cannot be written.
    """
    finished = [find_finished(store, number, name) for number, name in named.items()]
    there = [shard for shard in finished if shard is not None]
    if len(there) == num_shards:
        return there
    if not isinstance(store, LocalStore):
        raise RefusedInput(
            f"--output {store.where}: {source.name} is read as a stream, whose shards grow "
            "together and cannot be uploaded before the end; build into a folder, then copy that"
        )
    shards = [_GrowingShard(store.root / staged_tar(n), options) for n in range(num_shards)]
    numbers = shard_numbers(num_shards, options.seed)
    waiting_bytes = 0
    # None switches the bar off where standard error is not a terminal.
    disable = None if options.progress else True
    images = tqdm(source.stream(), total=source.num_images, unit=" images", disable=disable)
    prepared = _prepared(images, options)
    for row, ((label, where, image), number) in enumerate(zip(prepared, numbers, strict=False)):
        samples = shards[number].samples
        before = samples.tar.num_bytes
        samples.add(row, label, where, image)
        waiting_bytes += samples.tar.num_bytes - before
        if waiting_bytes > options.buffer_bytes:
            for shard in shards:
                shard.samples.tar.flush()
            waiting_bytes = 0
    return [shard.finish(number, store) for number, shard in enumerate(shards)]


def shard_numbers(num_shards: int, seed: int) -> Iterator[int]:
    """The shard of image 0, 1, 2 ... of a stream, without end."""
    bits = random_generator("stream", seed).bit_generator
    while True:
        yield from (bits.random_raw(_DRAWN_AT_ONCE) % np.uint64(num_shards)).tolist()


class _GrowingShard:
    """A shard that is written in turns; between them no file is open."""

    def __init__(self, path: Path, options: BuildOptions) -> None:
        self._path = path
        self._growing = path.with_name(f"{path.name}.growing.partial")
        self._growing.unlink(missing_ok=True)
        # One buffer for all shards is counted above, so none writes by itself.
        self.samples = ShardSamples(self, buffer_bytes=options.buffer_bytes + 1)

    def write(self, data: bytes) -> int:
        """Append to the file; that is all of a file that writing a tar needs."""
        with open(self._growing, "ab", buffering=0) as file:
            return file.write(data)

    def finish(self, number: int, store: OutputStore) -> WrittenShard:
        """Write the rest, the end of the archive, and the record."""
        record = self.samples.finish(number)
        os.replace(self._growing, self._path)
        record.save(store)
        return record.shard


def _prepared(
    images: Iterable[StreamedImage], options: BuildOptions
) -> Iterator[tuple[int | LabelSet, str, PreparedImage | str]]:
    """Label, origin and image of the stream in its order.

    Worker processes decode where nearly every image has to be; to send them images that are only
    copied would cost more than it saves.
    """
    num_workers = (options.workers or num_usable_cores()) if options.decodes_all else 1
    prepare = partial(_prepare_some, recipe=options)
    for some in run_jobs_in_order(prepare, _batched(images), num_workers):
        yield from some


def _prepare_some(
    images: list[StreamedImage], recipe: ImageRecipe
) -> list[tuple[int | LabelSet, str, PreparedImage | str]]:
    return [
        (image.label, image.where, prepare_content(_content(image), recipe)) for image in images
    ]


def _batched(images: Iterable[StreamedImage]) -> Iterator[list[StreamedImage]]:
    rest = iter(images)
    while batch := list(islice(rest, _SENT_AT_ONCE)):
        yield batch


def _content(image: StreamedImage) -> bytes | OSError:
    try:
        return image.read()
    except OSError as error:
        return error
