"""Training images a second that `data_pipeline.leaks` gets through, projected to 14 million.

    python benchmarks/leak_cost.py --train DIR [DIR ...] --test DIR [DIR ...] [--json FILE]

DIRs are datasets made by `data_pipeline.build`. Every training set is searched for the first 1,000,
10,000 and 100,000 images of the test sets (as far as there are so many), because reading and
decoding cost the same whatever the test sets are, and searching costs more the larger they are.
Without --train, pictures that cost as much to decode as photographs are generated once into
datasets/loader-benchmark. Each measurement is a fresh process and the variants take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.loader_ours import GENERATED, generate_shards  # noqa: E402
from benchmarks.side_by_side import circumstances, compare, medians, write_json  # noqa: E402
from data_pipeline.dataset import ShardedDataset, open_dataset  # noqa: E402

TEST_IMAGES = (1_000, 10_000, 100_000)
PROJECTED_IMAGES = 14_000_000


def first_images(folders: list[Path], number: int) -> list[ShardedDataset]:
    """The first images of some datasets, `number` in all at most."""
    chosen = []
    for folder in folders:
        dataset = open_dataset(folder)
        count = min(number, dataset.num_images)
        if count:
            chosen.append(dataset.select(np.arange(count)))
        number -= count
    return chosen


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Read the test images, then time the search through one training set."""
    from data_pipeline.leaks.held_out import read_held_out
    from data_pipeline.leaks.search import find_leaks

    _, number, train_number = options.only.split(":")
    train = first_images([options.train[int(train_number)]], options.images)[0]
    tests = first_images(options.test, int(number))
    began = time.perf_counter()
    held_out = read_held_out(tests, threads=options.threads, on_images=lambda _: None)
    index_seconds = time.perf_counter() - began
    began, cpu_began = time.perf_counter(), time.process_time()
    num_images = num_matches = 0
    for found in find_leaks(train, held_out, max_distance=0.1, threads=options.threads):
        num_images += found.num_images
        num_matches += len(found.matches)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "images_per_second": num_images / seconds,
        "cpu_milliseconds_per_image": 1000 * cpu / num_images,
        "hours_for_14_million": PROJECTED_IMAGES / (num_images / seconds) / 3600,
        "core_hours_for_14_million": PROJECTED_IMAGES * cpu / num_images / 3600,
        "index_seconds": index_seconds,
        "resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "num_train_images": num_images,
        "num_matches": num_matches,
    }


def variants(options: argparse.Namespace) -> dict[str, str]:
    """Name of each measurement, and what it is in words."""
    available = sum(open_dataset(folder).num_images for folder in options.test)
    sizes = [number for number in TEST_IMAGES if number <= available] or [available]
    return {
        f"test:{number}:{train}": f"{folder.name}, {number:,} test images"
        for train, folder in enumerate(options.train)
        for number in sizes
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=Path, nargs="+", metavar="DIR", help="training sets, each measured alone")
    add("--test", type=Path, nargs="+", required=True, metavar="DIR", help="test sets, together")
    add("--images", type=int, default=20_000, help="training images read at most (default 20000)")
    add("--runs", type=int, default=3, help="rounds (default 3)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads")
    add("--json", type=Path, help="file for the whole report")
    add("--only", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def show(report: dict[str, Any], names: dict[str, str]) -> None:
    """The table as Markdown."""
    print("| train and test | images/s (lowest-highest) | CPU ms an image | memory MB ", end="")
    print("| 14 million: hours here | core hours |")
    print("|---" * 6 + "|")
    for variant, words in names.items():
        row = report[variant]
        low, high = row["images_per_second_range"]
        print(
            f"| {words} | {row['images_per_second']:,.0f} ({low:,.0f}-{high:,.0f}) "
            f"| {row['cpu_milliseconds_per_image']:.2f} | {row['resident_megabytes']:,.0f} "
            f"| {row['hours_for_14_million']:.1f} | {row['core_hours_for_14_million']:.1f} |"
        )


def main() -> None:
    """Measure all variants in turn, or the one that `--only` names."""
    options = parse(sys.argv[1:])
    if options.only:
        print(json.dumps(measure(options)))
        return
    options.train = [folder.resolve() for folder in options.train or [generate_shards(GENERATED)]]
    options.test = [folder.resolve() for folder in options.test]
    names = variants(options)
    arguments = [
        *("--train", *map(str, options.train), "--test", *map(str, options.test)),
        *(f"--images={options.images}", f"--threads={options.threads}"),
    ]
    results = compare(__file__, [*names], arguments, runs=options.runs, timeout_seconds=3600)
    report: dict[str, Any] = medians(results)
    report["circumstances"] = circumstances(["torch", "torchvision", "faiss-cpu", "numpy"])
    show(report, names)
    write_json(options.json, report)


if __name__ == "__main__":
    main()
