"""`python -m data_pipeline.show`: what a dataset holds, in words and as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import PretrainConfig
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.location import ShardAccess
from data_pipeline.order import SampleOrder
from data_pipeline.subset import add_subset_options, subset_of

_CLASSES_SHOWN = 20
_BAR_CHARACTERS = 40
_MOST_TILES = 4096
_LAST = 2**62


def describe(dataset: ShardedDataset, *, all_classes: bool = False) -> str:
    """Name, counts, sizes, and a histogram of the classes; several lines.

    Without `all_classes`, of more than 20 classes only the 10 largest and 10 smallest are listed.
    """
    manifest = dataset.manifest
    kind = manifest.source.get("kind", "unknown")
    lines = [
        f"{manifest.name}, split {manifest.split}: {manifest.counts_text()}",
        f"  built from  {'shards written elsewhere' if manifest.foreign else kind}",
        f"  data digest {manifest.digest}",
        "                         smallest      median     largest",
        _spread("width (px)", dataset.width),
        _spread("height (px)", dataset.height),
        _spread("file (bytes)", dataset.size),
        _spread("shard (images)", np.array([shard.num_images for shard in manifest.shards])),
        _spread("shard (bytes)", np.array([shard.num_bytes for shard in manifest.shards])),
    ]
    counts = dataset.images_per_class()
    lines += [_spread("class (images)", counts), *_selection(dataset)]
    return "\n".join([*lines, "classes:", *_histogram(dataset.classes, counts, all_classes)])


def _selection(dataset: ShardedDataset) -> list[str]:
    if not dataset.filter_digest:
        return []
    chosen = f"{dataset.num_images:,} images of {dataset.num_classes:,} classes"
    return [f"  chosen: {chosen}, filter digest {dataset.filter_digest}"]


def _spread(name: str, values: NDArray) -> str:
    smallest, median, largest = values.min(), np.median(values), values.max()
    return f"  {name:<18} {smallest:>12,} {median:>11,.0f} {largest:>11,}"


def _histogram(classes: Sequence[str], counts: NDArray, all_classes: bool) -> list[str]:
    """A line per class: number, name, count and bar."""
    if all_classes or len(classes) <= _CLASSES_SHOWN:
        return [_bar(number, classes, counts) for number in range(len(classes))]
    by_count = np.argsort(-counts, kind="stable").tolist()
    half = _CLASSES_SHOWN // 2
    return [
        *(_bar(number, classes, counts) for number in by_count[:half]),
        f"  ... {len(classes) - 2 * half:,} more (--all-classes lists them)",
        *(_bar(number, classes, counts) for number in by_count[-half:]),
    ]


def _bar(number: int, classes: Sequence[str], counts: NDArray) -> str:
    length = round(_BAR_CHARACTERS * int(counts[number]) / max(1, int(counts.max())))
    return f"  {number:>6} {classes[number][:28]:<28} {counts[number]:>9,} {'#' * length}".rstrip()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.show",
        description="Print classes, histogram and sizes of a dataset, and draw some of its images.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dir", help="folder or URL with manifest.json and index.parquet")
    add("--absolute-shards", action="store_true", help="read shards outside the folder or URL too")
    add("--all-classes", action="store_true", help="list every class")
    add("--contact-sheet", type=Path, metavar="FILE", help="picture to write, e.g. sheet.png")
    add("--images", type=int, default=32, metavar="N", help="images in the picture (default 32)")
    add("--seed", type=int, default=0, help="of the choice of images and of their views; a run's")
    add(
        "--positions",
        type=_positions,
        metavar="A:B",
        help="in the picture: the images that a run reads at the global positions A to B - 1, as a "
        "log line names them; with --augmented as it sees them",
    )
    add("--streams", type=int, default=768, help="the run's data.streams (default 768)")
    add("--augmented", action="store_true", help="show training's views of each image too")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="pretraining config whose crops and input size --augmented takes (default: the "
        "schema's, 224 px)",
    )
    add_subset_options(parser)
    return parser.parse_args(argv)


def _positions(text: str) -> range:
    start, colon, stop = text.partition(":")
    if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop) <= _LAST):
        raise argparse.ArgumentTypeError(f"{text!r}: give A:B, for instance 96:112")
    return range(int(start), int(stop))


def _check(options: argparse.Namespace) -> None:
    if options.images < 1:
        raise RefusedInput(f"--images {options.images}: give at least 1")
    if options.positions is not None:
        if options.contact_sheet is None:
            raise RefusedInput("--positions says what to draw: add --contact-sheet FILE")
        if len(options.positions) > _MOST_TILES:
            raise RefusedInput(f"--positions: give at most {_MOST_TILES} of them")
    if options.streams < 1:
        raise RefusedInput(f"--streams {options.streams}: give at least 1")
    if options.augmented and options.contact_sheet is None:
        raise RefusedInput("--augmented changes the picture: name it with --contact-sheet FILE")
    if options.config is not None and not options.augmented:
        raise RefusedInput(f"--config {options.config} says how to augment: add --augmented")


def _draw(dataset: ShardedDataset, options: argparse.Namespace) -> None:
    from data_pipeline.augment import TrainTransform  # imports torch
    from data_pipeline.contact_sheet import Sheet, draw_contact_sheet

    transform = None
    if options.augmented:
        argv = [] if options.config is None else ["--config", str(options.config)]
        config = load_config(PretrainConfig, argv, "python -m data_pipeline.show").config
        side = config.model.image_px
        transform = TrainTransform(config.augment, (side, side), options.seed)
    sheet = Sheet(num_images=options.images, seed=options.seed, transform=transform)
    if options.positions is not None:
        order = SampleOrder(dataset, num_streams=options.streams, seed=options.seed)
        sheet = replace(sheet, order=order, positions=options.positions)
    draw_contact_sheet(dataset, sheet, options.contact_sheet)


def main(argv: Sequence[str]) -> int:
    """Describe the dataset and draw the picture if one is asked for."""
    options = _parse(argv)
    _check(options)
    access = ShardAccess(absolute_shards=options.absolute_shards)
    dataset = subset_of(open_dataset(options.dir, access), options, options.seed)
    print(describe(dataset, all_classes=options.all_classes))  # noqa: T201
    if options.contact_sheet is not None:
        _draw(dataset, options)
        print(f"wrote {options.contact_sheet}")  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
