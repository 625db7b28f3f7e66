"""Writes one shard and the record of what is in it.

The bytes depend only on the images and their keys, so a dataset is the same for any number of
worker processes. The record comes after the shard; a shard with a record is finished, and a build
that was interrupted goes on behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.output_store import OutputStore
from data_pipeline.prepare_image import ImageRecipe, prepare_content
from data_pipeline.shard_record import WrittenShard, find_finished, staged_tar
from data_pipeline.shard_samples import ShardSamples
from data_pipeline.sources.read_ahead import read_files
from data_pipeline.sources.source import PendingImage


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to write one shard.

    `number` is its place in the plan, `named` the name that an earlier start may have given it.
    """

    store: OutputStore
    number: int
    rows: tuple[int, ...]
    labels: tuple[int, ...]
    images: Sequence[PendingImage]
    recipe: ImageRecipe
    named: str | None = None


def write_shard(job: ShardJob) -> WrittenShard:
    """Write a shard and its record, unless both are there from an earlier start.

    Images that cannot be read, are no images or do not decode are left out.

    Raises:
        OSError: The store cannot be written.
    """
    finished = find_finished(job.store, job.number, job.named)
    if finished is not None:
        return finished
    contents = read_files(job.images)
    with job.store.create(staged_tar(job.number)) as file:
        samples = ShardSamples(file)
        for row, label, image, content in zip(
            job.rows, job.labels, job.images, contents, strict=True
        ):
            samples.add(row, label, image.where, prepare_content(content, job.recipe))
        record = samples.finish(job.number)
    record.save(job.store)
    return record.shard
