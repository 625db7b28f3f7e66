"""`python -m data_pipeline.build`: a dataset's image files become WebDataset shards with an index.

Images are shuffled over all shards by the seed, because sources are sorted by class; their bytes
are copied as they are unless `--max-side` makes them smaller. The output folder is a dataset once
its manifest is there, written last. A build that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.build_summary import BuildSummary, PartSummary
from data_pipeline.join_shards import join_shards, names_already_given
from data_pipeline.output_folder import (
    BuildDescription,
    Part,
    building,
    discard_unfinished,
    finished_build,
    stream_folder,
)
from data_pipeline.output_store import LocalStore, OutputStore, open_store
from data_pipeline.shard_plan import BuildOptions, num_stream_shards, plan_shards
from data_pipeline.shard_record import WrittenShards
from data_pipeline.shard_writer import ShardJob, write_shard
from data_pipeline.source_options import add_source_options, chosen_source, reader_options
from data_pipeline.sources import READER_OPTIONS, SOURCES, Source, StreamSource, open_source
from data_pipeline.stream_writer import write_stream
from data_pipeline.worker_processes import num_usable_cores, run_jobs


def build_dataset(
    source: str | Source | StreamSource,
    input: Path | str | None,
    split: str,
    output: Path | str,
    **options: Any,
) -> BuildSummary:
    """Write the shards, index and manifest of one split.

    Args:
        source: Name in `SOURCES`, or a source that was already opened (then `input` is not read).
        input: Folder of the source's files; None for a source that needs none.
        split: Name of the split.
        output: New or empty folder, or a URL such as s3://bucket/shards. If it holds the same build
            already, nothing is written; if it holds a beginning of it, that is gone on with.
        options: Fields of `BuildOptions`; the result does not depend on workers, progress or
            buffer_bytes. And those of the source's reader: classes, image_column, label_column.

    Raises:
        RefusedInput: Anything that a user can correct; `output` then holds no half dataset.
    """
    started = time.perf_counter()
    planned = _plan(source, input, split, options)
    manifest = finished_build(output, planned.description.facts)
    if manifest is not None:
        discard_unfinished(open_store(output))
        return BuildSummary(output, manifest, already_built=True)
    with building(output, planned.description) as store:
        written = _write_shards(planned, store, None)
        finished = join_shards(store, planned.description)
    return BuildSummary(
        output=output,
        manifest=finished.manifest,
        skipped=finished.skipped,
        changes=finished.changes,
        num_duplicates=finished.num_duplicates,
        num_written=written.num_images,
        seconds=time.perf_counter() - started,
        notices=written.notices,
    )


def build_part(
    source: str | Source | StreamSource,
    input: Path | str | None,
    split: str,
    output: Path | str,
    part: Part,
    **options: Any,
) -> PartSummary | BuildSummary:
    """Write the shards of one part; `python -m data_pipeline.merge` makes the parts a dataset.

    All parts are given the same arguments, `output` too, which lies where all can write.

    Raises:
        RefusedInput: Anything that a user can correct.
    """
    started = time.perf_counter()
    planned = _plan(source, input, split, options)
    manifest = finished_build(output, planned.description.facts)
    if manifest is not None:
        return BuildSummary(output, manifest, already_built=True)
    with building(output, planned.description, part) as store:
        written = _write_shards(planned, store, part)
    seconds = time.perf_counter() - started
    return PartSummary(output, part, tuple(written.shards), seconds, written.notices)


@dataclass(frozen=True)
class _PlannedBuild:
    """A source, and the rows of each shard: a function of the listing and the options.

    A stream has no `shards` here; its images are sent to theirs as they come.
    """

    source: Source | StreamSource
    options: BuildOptions
    shards: list[NDArray[np.int64]]
    description: BuildDescription


def _plan(
    source: str | Source | StreamSource,
    input: Path | str | None,
    split: str,
    options: dict[str, Any],
) -> _PlannedBuild:
    of_reader = {name: options.pop(name) for name in READER_OPTIONS if name in options}
    settings = BuildOptions(**options)
    listed = open_source(source, input, split, **of_reader) if isinstance(source, str) else source
    kind = source if isinstance(source, str) else source.name
    shards = [] if isinstance(listed, StreamSource) else plan_shards(listed, settings)
    facts = _describe_build(kind, listed, settings)
    description = BuildDescription(
        name=listed.name,
        split=listed.split,
        classes=listed.classes,
        facts=facts,
        num_shards=facts["shards"] if isinstance(listed, StreamSource) else len(shards),
    )
    return _PlannedBuild(listed, settings, shards, description)


def _describe_build(
    kind: str, source: Source | StreamSource, options: BuildOptions
) -> dict[str, Any]:
    """What decides the result; two builds with the same description give the same bytes."""
    if isinstance(source, StreamSource):
        counts = {"num_files": source.num_images, "shards": num_stream_shards(source, options)}
    else:
        counts = {"num_files": len(source.labels)}
    return {
        "kind": kind,
        "split": source.split,
        "options": source.options(),
        "fingerprint": source.fingerprint(),
        **counts,
        "shuffle_seed": options.seed if options.shuffle else None,
        "shard_images": options.shard_images,
        "shard_bytes": options.shard_bytes,
        **options.recipe_facts(),
    }


def _write_shards(planned: _PlannedBuild, store: OutputStore, part: Part | None) -> WrittenShards:
    """Write the shards, or those of a part, into `store`, unless they are there."""
    all_numbers = range(planned.description.num_shards)
    numbers = [number for number in all_numbers if part is None or part.holds(number)]
    named = names_already_given(store, planned.description)
    if isinstance(planned.source, StreamSource):
        growth = _growth_folder(planned, store, part)
        wanted = {number: named.get(number) for number in numbers}
        return write_stream(planned.source, planned.options, store, growth, wanted)
    return _write_listed(planned, planned.source, store, numbers, named)


def _write_listed(
    planned: _PlannedBuild,
    source: Source,
    store: OutputStore,
    numbers: Sequence[int],
    named: dict[int, str],
) -> WrittenShards:
    from tqdm import tqdm

    options = planned.options
    jobs = (_job(planned, source, store, number, named.get(number)) for number in numbers)
    num_workers = min(options.workers or num_usable_cores(), max(len(numbers), 1))
    num_images = sum(len(planned.shards[number]) for number in numbers)
    written = []
    # None switches the bar off where standard error is not a terminal.
    disable = None if options.progress else True
    with tqdm(total=num_images, unit=" images", smoothing=0.1, disable=disable) as bar:
        for shard in run_jobs(write_shard, jobs, num_workers):
            written.append(shard)
            bar.update(shard.num_images + len(shard.skipped))
    return WrittenShards(written, sum(s.num_images for s in written if not s.was_there))


def _growth_folder(planned: _PlannedBuild, store: OutputStore, part: Part | None) -> Path:
    """Where the shards of a stream grow: the same for every start of this build or part."""
    folder, scratch = stream_folder(part), planned.options.scratch
    if scratch is not None:
        return scratch / f"{planned.description.digest(store)}-{Path(folder).name}"
    if isinstance(store, LocalStore):
        return store.root / folder
    raise RefusedInput(
        f"--output {store.where}: {planned.source.name} is read as a stream, whose shards grow "
        "together before they are uploaded; say with --scratch DIR where, with room for all of "
        "them (or for those of a --part)"
    )


def _job(
    planned: _PlannedBuild, source: Source, store: OutputStore, number: int, named: str | None
) -> ShardJob:
    rows = planned.shards[number]
    return ShardJob(
        store=store,
        number=number,
        rows=tuple(rows.tolist()),
        labels=tuple(source.labels[rows].tolist()),
        images=source.images(rows),
        recipe=planned.options,
        named=named,
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.build",
        description="Write WebDataset shards, index and manifest of one split of a dataset.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--source", required=True, metavar="NAME", help=f"layout of the files: {', '.join(SOURCES)}"
    )
    add("--input", metavar="DIR", help="folder of the files, in their official layout; or a URL")
    add("--split", required=True, help="which part; for image-folder a folder of --input")
    add("--output", required=True, metavar="DIR", help="new or empty folder, or s3:// or gs:// URL")
    add("--shard-images", type=int, metavar="N", help="images of a shard (default 1000)")
    add("--shard-bytes", type=int, metavar="N", help="instead: largest size of a shard, in bytes")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--seed", type=int, default=0, help="of the shuffle over all shards (default 0)")
    add("--no-shuffle", action="store_true", help="keep the source's order")
    add("--part", metavar="I/N", help="write only this share of the shards, from 1/N to N/N")
    _add_recipe(parser)
    add_source_options(parser)
    return parser.parse_args(argv)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is done with each image").add_argument
    add("--max-side", type=int, metavar="PX", help="make larger images smaller: their shorter side")
    add("--quality", type=int, default=90, metavar="N", help="of those, as JPEG (default 90)")
    add(
        "--chroma",
        choices=("420", "422", "444"),
        default="420",
        help="colour resolution of those (default 420, a quarter; 444 is full)",
    )
    add(
        "--check",
        choices=("quick", "decode"),
        default="decode",
        help="decode: every image, to leave out those that do not (default); quick: only those "
        "whose files do not look whole, which is faster and misses damage in the middle of a JPEG",
    )
    add("--keep-broken", action="store_true", help="keep images that do not decode")


def main(argv: Sequence[str]) -> int:
    """Build, then print the summary."""
    options = _parse(argv)
    output = options.output if "://" in options.output else Path(options.output)
    where = (chosen_source(options), options.input, options.split, output)
    names = ["shard_images", "shard_bytes", "workers", "seed", "shards", "buffer_bytes"]
    names += ["max_side", "quality", "chroma", "check", "keep_broken", "scratch"]
    settings = {name: getattr(options, name) for name in names} | reader_options(options)
    settings["shuffle"] = not options.no_shuffle
    if options.part is None:
        summary: BuildSummary | PartSummary = build_dataset(*where, **settings)
    else:
        summary = build_part(*where, Part.parse(options.part), **settings)
    print(summary.text())  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
