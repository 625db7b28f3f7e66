"""`python -m data_pipeline.build`: a dataset's image files become WebDataset shards with an index.

Images are shuffled over all shards by the seed, because sources are sorted by class; their bytes
are copied as they are. The output folder is a dataset once its manifest is there, written last.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.errors import RefusedInput
from data_pipeline.index_table import INDEX_SCHEMA, write_index
from data_pipeline.manifest import Manifest, ShardEntry
from data_pipeline.output_folder import (
    building,
    describe_skipped,
    finished_build,
    write_skipped,
)
from data_pipeline.shard_plan import BuildOptions, num_stream_shards, plan_shards
from data_pipeline.shard_writer import ShardJob, SkippedFile, WrittenShard, write_shard
from data_pipeline.source_options import add_source_options, chosen_source, reader_options
from data_pipeline.sources import READER_OPTIONS, SOURCES, Source, StreamSource, open_source
from data_pipeline.stream_writer import write_stream
from data_pipeline.worker_processes import num_usable_cores, run_jobs


@dataclass(frozen=True)
class BuildSummary:
    """What a build did. `num_converted` counts GIF and BMP files that were stored as PNG."""

    output: Path
    manifest: Manifest
    skipped: tuple[SkippedFile, ...]
    num_converted: int
    seconds: float
    already_built: bool
    notices: tuple[str, ...] = ()

    def text(self) -> str:
        """The summary for people, several lines."""
        manifest = self.manifest
        what = manifest.counts_text()
        if self.already_built:
            return f"{self.output} already holds the finished build of this: {what}"
        rate = manifest.num_images / max(self.seconds, 1e-9)
        lines = [
            f"wrote {what}",
            f"  {manifest.name}, split {manifest.split}, to {self.output} "
            f"in {self.seconds:.1f} s ({rate:,.0f} images/s)",
            f"  data digest {manifest.digest}",
        ]
        if self.num_converted:
            lines.append(f"  stored {self.num_converted} GIF or BMP files as PNG")
        notices = [f"  {notice}" for notice in self.notices]
        return "\n".join([*lines, *describe_skipped(self.output, self.skipped), *notices])


def build_dataset(
    source: str | Source | StreamSource,
    input: Path | None,
    split: str,
    output: Path,
    **options: Any,
) -> BuildSummary:
    """Write the shards, index and manifest of one split.

    Args:
        source: Name in `SOURCES`, or a source that was already opened (then `input` is not read).
        input: Folder of the source's files; None for a source that needs none.
        split: Name of the split.
        output: New or empty folder. If it holds the same build already, nothing is written.
        options: Fields of `BuildOptions`: shard_images, shard_bytes, workers, seed, shuffle,
            progress, shards, buffer_bytes; the result does not depend on workers, progress or
            buffer_bytes. And those of the source's reader: classes, image_column, label_column.

    Raises:
        RefusedInput: Anything that a user can correct; `output` then holds no half dataset.
    """
    of_reader = {name: options.pop(name) for name in READER_OPTIONS if name in options}
    settings = BuildOptions(**options)
    started = time.perf_counter()
    listed = open_source(source, input, split, **of_reader) if isinstance(source, str) else source
    kind = source if isinstance(source, str) else source.name
    facts = _describe_build(kind, listed, settings)
    output = Path(output)
    manifest = finished_build(output, facts)
    if manifest is not None:
        return BuildSummary(output, manifest, (), 0, 0.0, already_built=True)
    with building(output) as staging:
        if isinstance(listed, StreamSource):
            written = write_stream(listed, settings, staging)
        else:
            written = _write_shards(listed, settings, staging)
        manifest = _finish(listed, facts, written, output)
    return BuildSummary(
        output=output,
        manifest=manifest,
        skipped=tuple(file for shard in written for file in shard.skipped),
        num_converted=sum(shard.num_converted for shard in written),
        seconds=time.perf_counter() - started,
        already_built=False,
        notices=tuple(listed.notices()) if isinstance(listed, StreamSource) else (),
    )


def _describe_build(
    kind: str, source: Source | StreamSource, options: BuildOptions
) -> dict[str, Any]:
    """What decides the result; two builds with the same description give the same bytes."""
    if isinstance(source, StreamSource):
        counts = {
            "num_files": source.num_images,
            "shards": num_stream_shards(source, options),
        }
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
    }


def _write_shards(source: Source, options: BuildOptions, staging: Path) -> list[WrittenShard]:
    """Write every shard into `staging`; gives them in the order of the plan."""
    from tqdm import tqdm

    plan = plan_shards(source, options)
    jobs = (
        ShardJob(
            path=staging / f"{number:06d}.tar",
            rows=tuple(rows.tolist()),
            labels=tuple(source.labels[rows].tolist()),
            images=source.images(rows),
        )
        for number, rows in enumerate(plan)
    )
    num_workers = min(options.workers or num_usable_cores(), len(plan))
    written = []
    num_images = len(source.labels)
    # None switches the bar off where standard error is not a terminal.
    disable = None if options.progress else True
    with tqdm(total=num_images, unit=" images", smoothing=0.1, disable=disable) as bar:
        for shard in run_jobs(write_shard, jobs, num_workers):
            written.append(shard)
            bar.update(shard.num_images + len(shard.skipped))
    return sorted(written, key=lambda shard: shard.path)


def _finish(
    source: Source | StreamSource,
    facts: dict[str, Any],
    written: list[WrittenShard],
    output: Path,
) -> Manifest:
    """Move shards to their names, write index, list of skipped files and, last, the manifest."""
    filled = [shard for shard in written if shard.num_images]
    if not filled:
        skipped = [file for shard in written for file in shard.skipped]
        first = f"{skipped[0].where}: {skipped[0].reason}" if skipped else "there is none"
        raise RefusedInput(
            f"none of the {len(skipped)} files of {source.name}, split {source.split}, can be "
            f"used; the first is {first}"
        )
    entries, tables = [], []
    for number, shard in enumerate(filled):
        name = f"{source.split}-{number:06d}.tar"
        os.replace(shard.path, output / name)
        entries.append(ShardEntry(name, shard.num_images, shard.num_bytes, shard.sha256))
        numbers = pa.array(np.full(shard.num_images, number, dtype=np.int32))
        position = INDEX_SCHEMA.get_field_index("shard")
        tables.append(shard.table.set_column(position, INDEX_SCHEMA.field("shard"), numbers))
    index_digest = write_index(output, pa.concat_tables(tables).combine_chunks())
    write_skipped(output, [file for shard in written for file in shard.skipped])
    manifest = Manifest.describe(
        identity=(source.name, source.split),
        classes=source.classes,
        shards=tuple(entries),
        source=facts,
        index_digest=index_digest,
    )
    manifest.save(output)
    return manifest


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
    add("--input", type=Path, metavar="DIR", help="folder of the files, in their official layout")
    add("--split", required=True, help="which part; for image-folder a folder of --input")
    add("--output", type=Path, required=True, metavar="DIR", help="new or empty folder")
    add("--shard-images", type=int, metavar="N", help="images of a shard (default 1000)")
    add("--shard-bytes", type=int, metavar="N", help="instead: largest size of a shard, in bytes")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--seed", type=int, default=0, help="of the shuffle over all shards (default 0)")
    add("--no-shuffle", action="store_true", help="keep the source's order")
    add(
        "--shards",
        type=int,
        metavar="N",
        help="of a source that is read as a stream (imagenet-21k, parquet), instead: their number",
    )
    add(
        "--buffer-bytes",
        type=int,
        default=BuildOptions.buffer_bytes,
        metavar="N",
        help="of a stream: what may wait in memory to be written (default %(default)s); more means "
        "fewer writes",
    )
    add_source_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Build, then print the summary."""
    options = _parse(argv)
    summary = build_dataset(
        chosen_source(options),
        options.input,
        options.split,
        options.output,
        shard_images=options.shard_images,
        shard_bytes=options.shard_bytes,
        workers=options.workers,
        seed=options.seed,
        shuffle=not options.no_shuffle,
        shards=options.shards,
        buffer_bytes=options.buffer_bytes,
        **reader_options(options),
    )
    print(summary.text())  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
