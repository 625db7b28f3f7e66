"""Seconds and memory until a dataset of 14 million images in 13,000 shards can be read.

    python benchmarks/index_opening.py [--images 14000000] [--shards 13000] [--json FILE]

The first process of a node writes the memory-mapped index (data_pipeline/index_cache.py); all later
ones map it. Measured in fresh processes: the first opening, then --ranks processes that hold the
dataset open at the same time, each after making the sample order and finding the rows of its first
batches. Memory is what the processes hold beyond one that only imported the same modules: private
memory of each, plus the pages of the mapped file, which they share, counted once.

No tar is written: manifest and index are all that opening needs (under 1 GB in a temporary folder).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import ROOT, circumstances, write_json  # noqa: E402

CLASSES = 21_841
IMAGE_BYTES = 110_000


def write_dataset(folder: Path, num_images: int, num_shards: int) -> None:
    """A manifest and an index as `build` would write them."""
    import numpy as np
    import pyarrow as pa

    from data_pipeline.index import INDEX_SCHEMA, Manifest, ShardEntry, write_index

    rng = np.random.default_rng(0)
    rows = np.arange(num_images)
    shard = rows * num_shards // num_images
    counts = np.bincount(shard, minlength=num_shards)
    place = rows - np.repeat(np.cumsum(counts) - counts, counts)
    columns = {
        "shard": shard.astype(np.int32),
        "key": pa.array([f"n{row % CLASSES:08d}_{row}" for row in rows.tolist()]),
        "extension": pa.array(["jpg"]).take(pa.array(np.zeros(num_images, np.int8))),
        "offset": place * (IMAGE_BYTES + 1536) + 512,
        "size": rng.integers(IMAGE_BYTES // 10, IMAGE_BYTES, num_images),
        "label": rng.integers(0, CLASSES, num_images),
        "width": rng.integers(200, 600, num_images, np.int32),
        "height": rng.integers(200, 600, num_images, np.int32),
        "source_row": rng.permutation(num_images),
    }
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    digest = write_index(folder, table.cast(INDEX_SCHEMA))
    Manifest.describe(
        identity=("index-opening", "train"),
        classes=tuple(f"n{number:08d}" for number in range(CLASSES)),
        shards=tuple(
            ShardEntry(f"train-{number:06d}.tar", int(count), int(count) * IMAGE_BYTES, "0" * 64)
            for number, count in enumerate(counts)
        ),
        source={"source": "benchmark"},
        index_digest=digest,
    ).save(folder)


def memory() -> dict[str, float]:
    """Private memory, and resident pages of the mapped index, in megabytes."""
    import psutil

    process = psutil.Process()
    mapped = sum(
        region.rss for region in process.memory_maps() if region.path.endswith("index.arrow")
    )
    return {"private": process.memory_full_info().uss / 1e6, "mapped": mapped / 1e6}


def open_once(options: argparse.Namespace) -> None:
    """Open, use, say what it took, and hold the dataset until the parent has all answers."""
    import numpy as np

    from data_pipeline import SampleOrder, open_dataset
    from data_pipeline.order import random_generator

    random_generator("warm", 0).bit_generator.random_raw(10)
    before = memory()
    began = time.perf_counter()
    dataset = open_dataset(options.folder)
    opened = time.perf_counter()
    order = SampleOrder(dataset, num_streams=768, seed=0)
    rows = order.rows_at(np.arange(4096) + int(2.9 * dataset.num_images))
    sizes = dataset.size[rows]
    ordered = time.perf_counter()
    after = memory()
    assert sizes.min() > 0
    found = {
        "open_seconds": opened - began,
        "order_seconds": ordered - opened,
        "private_megabytes": after["private"] - before["private"],
        "mapped_megabytes": after["mapped"],
    }
    print(json.dumps(found), flush=True)
    sys.stdin.readline()


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that opens the dataset."""
    return subprocess.Popen(
        [sys.executable, __file__, "--folder", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answers(processes: list[subprocess.Popen[str]]) -> list[dict[str, float]]:
    """What the processes found; they end when all have answered."""
    lines = [process.stdout.readline() for process in processes if process.stdout]
    for process in processes:
        process.communicate("\n", timeout=60)
    return [json.loads(line) for line in lines]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The first opening; then single ones, one after the other; then all ranks at once."""
    (first,) = answers([start(folder)])
    later = [answers([start(folder)])[0] for _ in range(options.runs)]
    together = answers([start(folder) for _ in range(options.ranks)])
    private = sum(found["private_megabytes"] for found in together)
    mapped = max(found["mapped_megabytes"] for found in together)
    return {
        "first_open_seconds": first["open_seconds"],
        "open_seconds": statistics.median(found["open_seconds"] for found in later),
        "open_seconds_range": [
            min(found["open_seconds"] for found in later),
            max(found["open_seconds"] for found in later),
        ],
        "order_seconds": statistics.median(found["order_seconds"] for found in later),
        "ranks": options.ranks,
        "private_megabytes_of_a_rank": private / options.ranks,
        "mapped_megabytes_of_the_node": mapped,
        "megabytes_of_the_node": private + mapped,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=14_000_000, help="rows of the index")
    parser.add_argument("--shards", type=int, default=13_000, help="shards of the manifest")
    parser.add_argument("--ranks", type=int, default=8, help="processes of the node")
    parser.add_argument("--runs", type=int, default=5, help="openings by one process")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Write a dataset, open it, print what it took."""
    options = parse(sys.argv[1:])
    if options.folder is not None:
        open_once(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, options.images, options.shards)
        report = measure(options, folder)
        for file in ("manifest.json", "index.parquet", "index.arrow"):
            path = folder / file
            report[f"{file}_megabytes"] = path.stat().st_size / 1e6 if path.exists() else 0.0
    for key, value in report.items():
        print(f"{key}: {value if isinstance(value, list | int) else round(value, 3)}")
    report["settings"] = {"images": options.images, "shards": options.shards}
    report["circumstances"] = circumstances(["numpy", "pyarrow"])
    write_json(options.json, report)


if __name__ == "__main__":
    main()
