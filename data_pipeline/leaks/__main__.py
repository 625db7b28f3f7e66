"""`python -m data_pipeline.leaks`: does the training set show images of the test sets?

Exit code 0, whether or not there are leaks; 2: refused input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from configs.data_groups import DataConfig
from configs.errors import RefusedInput
from data_pipeline.location import ShardAccess
from data_pipeline.worker_processes import num_usable_cores

_MAX_DISTANCE = 0.1
_REPORT_PAIRS = 300


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.leaks",
        description="Find training images that show a test image: exact copies, and copies that "
        "were compressed anew, resized, cropped by about 5 %, made brighter or darker, or "
        "mirrored.",
        epilog="The pairs go to a Parquet file; training without these images is "
        "--data.exclude FILE. Exit code 0, whether or not there are leaks; 2: refused input. "
        "docs/leaks.md says what is found and what is not.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--train", required=True, metavar="DIR", help="dataset to be trained on, or its URL")
    add(
        "--test",
        required=True,
        action="append",
        metavar="DIR",
        help="dataset that it must not show, or its URL; may be given several times",
    )
    add("--output", type=Path, required=True, metavar="FILE", help="the pairs, e.g. leaks.parquet")
    add("--report", type=Path, metavar="FILE", help="page with the pairs, e.g. leaks.html")
    add(
        "--report-pairs",
        type=int,
        default=_REPORT_PAIRS,
        metavar="N",
        help=f"pairs on the page (default {_REPORT_PAIRS})",
    )
    add(
        "--max-distance",
        type=float,
        default=_MAX_DISTANCE,
        metavar="X",
        help="how much near copies may differ, as 1 - correlation of their pixels, 0 to 0.5 "
        f"(default {_MAX_DISTANCE}); smaller finds fewer and is surer",
    )
    add("--threads", type=int, metavar="N", help="threads (default: one per core)")
    _add_remote(parser)
    return parser.parse_args(argv)


def _add_remote(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("of datasets at URLs").add_argument
    add(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="fetch whole shards and keep them here while there is room (--cache-bytes); without, "
        "images are asked for one by one",
    )
    add(
        "--cache-bytes",
        type=int,
        default=DataConfig.model_fields["cache_bytes"].default,
        metavar="N",
        help="room in --cache-dir (default %(default)s)",
    )
    add("--absolute-shards", action="store_true", help="read shards outside the folder or URL too")


def _check(options: argparse.Namespace) -> None:
    if options.threads is not None and options.threads < 1:
        raise RefusedInput(f"--threads {options.threads}: give at least 1")
    if options.cache_bytes < 1:
        raise RefusedInput(f"--cache-bytes {options.cache_bytes}: give at least 1")
    if options.report_pairs < 1:
        raise RefusedInput(f"--report-pairs {options.report_pairs}: give at least 1")
    # Beyond 0.5 pairs are not aligned, and unrelated images would be listed.
    if not 0 <= options.max_distance <= 0.5:
        raise RefusedInput(f"--max-distance {options.max_distance}: give a number from 0 to 0.5")
    if options.report is not None and options.report.absolute() == options.output.absolute():
        raise RefusedInput(f"--report and --output are both {options.report}; name two files")


def main(argv: Sequence[str]) -> int:
    """Find, write and print the summary."""
    options = _parse(argv)
    _check(options)
    from data_pipeline.leaks.record import (  # imports torch
        check_writable,
        open_datasets,
        record_leaks,
    )

    if options.report is not None:
        check_writable(options.report, "--report")
    access = ShardAccess(options.cache_dir, options.cache_bytes, options.absolute_shards)
    train, tests = open_datasets(options.train, options.test, access)
    summary = record_leaks(
        train,
        tests,
        options.output,
        max_distance=options.max_distance,
        threads=options.threads or num_usable_cores(),
    )
    text = summary.text(options.output)
    print(text)  # noqa: T201
    if options.report is not None:
        from data_pipeline.leaks.report import write_report

        shown = write_report(
            options.report,
            options.output,
            train,
            tests,
            [line.strip() for line in text.splitlines()],
            options.report_pairs,
        )
        print(f"{shown:,} pairs side by side in {options.report}")  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
