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
from data_pipeline.shard_plan import BuildOptions, plan_shards
from data_pipeline.shard_writer import ShardJob, SkippedFile, WrittenShard, write_shard
from data_pipeline.sources import SOURCES, FractalOptions, FractalSource, Source, open_source
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
        return "\n".join([*lines, *describe_skipped(self.output, self.skipped)])


def build_dataset(
    source: str | Source, input: Path | None, split: str, output: Path, **options: Any
) -> BuildSummary:
    """Write the shards, index and manifest of one split.

    Args:
        source: Name in `SOURCES`, or a source that was already opened (then `input` is not read).
        input: Folder of the source's files; None for a source that needs none.
        split: Name of the split.
        output: New or empty folder. If it holds the same build already, nothing is written.
        options: Fields of `BuildOptions`: shard_images, shard_bytes, workers, seed, shuffle,
            progress. The result does not depend on workers.

    Raises:
        RefusedInput: Anything that a user can correct; `output` then holds no half dataset.
    """
    settings = BuildOptions(**options)
    started = time.perf_counter()
    listed = open_source(source, input, split) if isinstance(source, str) else source
    kind = source if isinstance(source, str) else source.name
    facts = _describe_build(kind, listed, settings)
    output = Path(output)
    manifest = finished_build(output, facts)
    if manifest is not None:
        return BuildSummary(output, manifest, (), 0, 0.0, already_built=True)
    with building(output) as staging:
        written = _write_shards(listed, settings, staging)
        manifest = _finish(listed, facts, written, output)
    return BuildSummary(
        output=output,
        manifest=manifest,
        skipped=tuple(file for shard in written for file in shard.skipped),
        num_converted=sum(shard.num_converted for shard in written),
        seconds=time.perf_counter() - started,
        already_built=False,
    )


def _describe_build(kind: str, source: Source, options: BuildOptions) -> dict[str, Any]:
    """What decides the result; two builds with the same description give the same bytes."""
    return {
        "kind": kind,
        "split": source.split,
        "options": source.options(),
        "fingerprint": source.fingerprint(),
        "num_files": len(source.labels),
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
    source: Source, facts: dict[str, Any], written: list[WrittenShard], output: Path
) -> Manifest:
    """Move shards to their names, write index, list of skipped files and, last, the manifest."""
    filled = [shard for shard in written if shard.num_images]
    if not filled:
        example = written[0].skipped[0]
        raise RefusedInput(
            f"none of the {len(source.labels)} files of {source.name}, split {source.split}, can "
            f"be used; the first is {example.where}: {example.reason}"
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
    fractals = parser.add_argument_group("only with --source fractals")
    add = fractals.add_argument
    default = FractalOptions()
    add("--fractal-classes", type=int, metavar="N", help=f"default {default.classes}")
    add(
        "--fractal-images-per-class",
        type=int,
        metavar="N",
        help=f"default {default.images_per_class}",
    )
    add("--fractal-px", type=int, metavar="N", help=f"(longer) side, default {default.px}")
    add("--fractal-seed", type=int, metavar="N", help="of the classes (default 0)")
    add(
        "--fractal-image-format",
        choices=("png", "jpeg"),
        help="png: grey squares (default); jpeg: coloured 4:3 pictures, as costly as photographs",
    )
    return parser.parse_args(argv)


def _opened_source(options: argparse.Namespace) -> str | Source:
    """The source's name, or the fractal source with its own options."""
    prefix = "fractal_"
    chosen = {
        name.removeprefix(prefix): value
        for name, value in vars(options).items()
        if name.startswith(prefix) and value is not None
    }
    if not chosen:
        return str(options.source)
    if options.source != "fractals":
        option = f"--fractal-{next(iter(chosen)).replace('_', '-')}"
        raise RefusedInput(f"{option} goes only with --source fractals, not {options.source}")
    open_source("fractals", options.input, options.split)  # refuses a wrong split or an --input
    return FractalSource(options.split, FractalOptions(**chosen))


def main(argv: Sequence[str]) -> int:
    """Build, then print the summary."""
    options = _parse(argv)
    summary = build_dataset(
        _opened_source(options),
        options.input,
        options.split,
        options.output,
        shard_images=options.shard_images,
        shard_bytes=options.shard_bytes,
        workers=options.workers,
        seed=options.seed,
        shuffle=not options.no_shuffle,
    )
    print(summary.text())  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
