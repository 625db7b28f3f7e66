"""The index of a dataset, and `python -m data_pipeline.index`, which makes one for foreign shards.

What a dataset is lies in `manifest.py`, `index_table.py` and `dataset.py`, re-exported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.index_table import INDEX_SCHEMA, read_index, write_index
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, ShardEntry

__all__ = [
    "INDEX_FILE",
    "INDEX_SCHEMA",
    "MANIFEST_FILE",
    "Manifest",
    "ShardEntry",
    "ShardedDataset",
    "open_dataset",
    "read_index",
    "write_index",
]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.index",
        description="Make manifest and index for WebDataset shards that were written elsewhere "
        "(jpg, jpeg, png or webp with cls, or with json); the shards are not changed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--shards",
        required=True,
        metavar="PATTERN",
        help="e.g. '/data/train-{000..099}.tar', or a URL",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="folder of manifest and index")
    add("--name", help="name of the dataset (default: name of --output)")
    add("--split", default="train", help="which part of it the shards are (default train)")
    add(
        "--label-field",
        default="label",
        metavar="NAME",
        help="where the label is: a field of .json members (default label; .cls goes before it), "
        "or .txt for that member, or __key__ for the sample's key",
    )
    add(
        "--label-map",
        type=Path,
        metavar="FILE",
        help="YAML or JSON of `label: class` lines; samples of other labels are left out",
    )
    add(
        "--classes",
        type=Path,
        metavar="PATH",
        help="class names: a text file, one a line, or another dataset's folder (for a validation "
        "set, that of its training set)",
    )
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Index, then print the summary."""
    from data_pipeline.foreign_index import IndexOptions, index_shards

    options = _parse(argv)
    summary = index_shards(
        options.shards,
        options.output,
        IndexOptions(
            name=options.name or options.output.resolve().name,
            split=options.split,
            label_field=options.label_field,
            label_map=options.label_map,
            classes=options.classes,
            workers=options.workers,
        ),
    )
    print(summary.text())  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
