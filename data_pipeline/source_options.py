"""The options of `data_pipeline.build` that belong to single sources."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from configs.errors import RefusedInput
from data_pipeline.shard_plan import BuildOptions
from data_pipeline.sources import (
    READER_OPTIONS,
    FractalOptions,
    FractalSource,
    Source,
    open_source,
)

_FRACTAL_PREFIX = "fractal_"


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add groups of options for streams, imagenet-21k, open-images, parquet and fractals."""
    add = parser.add_argument_group("of a source that is read as a stream").add_argument
    add("--shards", type=int, metavar="N", help="number of shards, in place of another cut")
    add(
        "--buffer-bytes",
        type=int,
        default=BuildOptions.buffer_bytes,
        metavar="N",
        help="what may wait in memory to be written (default %(default)s); more means fewer "
        "writes, and more to do again after a kill",
    )
    add(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="where shards grow until they are finished (default: in --output; needed for a URL)",
    )
    add = parser.add_argument_group("only with --source imagenet-21k or open-images").add_argument
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="a line for each class, its identifier (WordNet id, /m/...) first: they number the "
        "classes, and others are left out",
    )
    add = parser.add_argument_group("only with --source open-images").add_argument
    add(
        "--machine-confidence",
        type=float,
        metavar="F",
        help="also take the classifier's labels as positive from this confidence on (default: "
        "only what people verified)",
    )
    add = parser.add_argument_group("only with --source parquet").add_argument
    add("--image-column", metavar="NAME", help="default: the one column that holds images")
    add("--label-column", metavar="NAME", help="default: the one column that holds labels")
    _add_fractals(parser)


def _add_fractals(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("only with --source fractals").add_argument
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


def reader_options(options: argparse.Namespace) -> dict[str, Any]:
    """The parsed options that readers take, None where they were not given."""
    return {name: getattr(options, name) for name in READER_OPTIONS}


def chosen_source(options: argparse.Namespace) -> str | Source:
    """The source's name, or the fractal source with its own options."""
    chosen = {
        name.removeprefix(_FRACTAL_PREFIX): value
        for name, value in vars(options).items()
        if name.startswith(_FRACTAL_PREFIX) and value is not None
    }
    if not chosen:
        return str(options.source)
    if options.source != "fractals":
        option = f"--fractal-{next(iter(chosen)).replace('_', '-')}"
        raise RefusedInput(f"{option} goes only with --source fractals, not {options.source}")
    open_source("fractals", options.input, options.split)  # refuses a wrong split or an --input
    return FractalSource(options.split, FractalOptions(**chosen))
