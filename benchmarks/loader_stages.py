"""What an image costs, stage by stage and by number of threads, and how near the loader comes.

    python benchmarks/loader_stages.py [--shards DIR] [--threads 1 2 4 8 16] [--json FILE]

Stages: reading the file out of its shard; decoding whole (torchvision), the crop alone, the crop
alone with DCT scaling; resizing in four ways; copying into the batch by torch and by the native
decoder. `bare` is a loop of decoding the crop and resizing it, nothing else, on files in memory;
`loader` the whole `TrainLoader`; their ratio is what everything but decoding and resizing leaves.

Each number is the median of --runs rounds, in which all stages take turns. Numbers of threads
above the number of cores are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.loader_ours import GENERATED, generate_shards  # noqa: E402
from benchmarks.side_by_side import circumstances, write_json  # noqa: E402

Work = Callable[[int], Any]
MAX_PIXELS = 178_956_970
WAYS = {
    "bicubic_antialias": ("bicubic", True),
    "bilinear_antialias": ("bilinear", True),
    "bicubic": ("bicubic", False),
    "bilinear": ("bilinear", False),
}


class Samples:
    """Files of the first images of the order, their crops and resized crops, all in memory."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read and decode once, so that each stage can be timed by itself."""
        import torch

        from data_pipeline import SampleOrder, open_dataset
        from data_pipeline.decode import decode_image
        from data_pipeline.shard_reader import ShardReader

        self.px = options.px
        self.dataset = open_dataset(options.shards)
        self.order = SampleOrder(self.dataset, num_streams=768, seed=0)
        self.rows = [self.order.row_at(position) for position in range(options.images)]
        self.reader = ShardReader(self.dataset)
        self.files = [self.reader.read(row) for row in self.rows]
        self.decode_image = decode_image
        self.transforms = {
            (way, scaling): self.transform(way, scaling)
            for way in WAYS
            for scaling in (False, True)
        }
        self.crops = [self.crop(number, True).pixels for number in range(len(self.files))]
        resize = self.transforms["bilinear", True].resize
        self.resized = [resize(crop, (self.px, self.px)) for crop in self.crops]
        self.slots = torch.empty((16, 3, self.px, self.px), dtype=torch.uint8)

    def transform(self, way: str, scaling: bool) -> Any:
        """What a training run would use."""
        from configs.data_groups import AugmentConfig
        from data_pipeline import TrainTransform

        interpolation, antialias = WAYS[way]
        augment = AugmentConfig(
            crop_area_min=0.08,
            interpolation=interpolation,
            antialias=antialias,
            dct_scaling=scaling,
        )
        return TrainTransform(augment, (self.px, self.px), seed=0)

    def crop(self, number: int, scaling: bool) -> Any:
        """The crop that position `number` sees; the whole image if the native decoder lacks."""
        transform = self.transforms["bilinear", scaling]
        return transform.decode(self.files[number], number, max_pixels=MAX_PIXELS)

    def view(self, number: int, way: str) -> None:
        """The whole way of one image that is in memory already."""
        transform = self.transforms[way, True]
        crop = transform.decode(self.files[number], number, max_pixels=MAX_PIXELS)
        transform.resize(crop.pixels, (self.px, self.px))


def stages(samples: Samples) -> dict[str, Work]:
    """Name and work of every stage; the work is told the number of an image."""
    from data_pipeline.jpeg_crop import write_planes

    size = (samples.px, samples.px)
    found: dict[str, Work] = {
        "read": lambda number: samples.reader.read(samples.rows[number]),
        "decode_whole": lambda number: samples.decode_image(
            samples.files[number], max_pixels=MAX_PIXELS
        ),
        "decode_crop": lambda number: samples.crop(number, False),
        "decode_crop_scaled": lambda number: samples.crop(number, True),
        "copy_torch": lambda number: samples.slots[number % 16].copy_(samples.resized[number]),
        "copy_native": lambda number: write_planes(
            samples.resized[number], number % 2 == 0, samples.slots[number % 16]
        ),
    }
    for way in WAYS:
        resize = samples.transforms[way, True].resize
        found[f"resize_{way}"] = lambda number, resize=resize: resize(samples.crops[number], size)
    for way in ("bicubic_antialias", "bilinear"):
        found[f"bare_{way}"] = lambda number, way=way: samples.view(number, way)
    return found


def images_per_second(work: Work, count: int, num_threads: int) -> float:
    """Throughput of a stage over all images, its threads started beforehand."""
    import torch

    start = threading.Barrier(num_threads + 1)

    def run(first: int) -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        start.wait()
        for number in range(first, count, num_threads):
            work(number)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(num_threads)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - began)


def loader_images_per_second(samples: Samples, way: str, num_threads: int) -> float:
    """Throughput of the whole loader, after a warm-up."""
    from configs.data_groups import LoaderConfig
    from data_pipeline import TrainLoader

    batch, count = 64, max(len(samples.files) // 64, 4)
    with TrainLoader(
        samples.dataset,
        samples.order,
        transform=samples.transforms[way, True],
        batch_images=batch,
        loader=LoaderConfig(threads=num_threads),
    ) as loader:
        for _ in range(6):
            next(loader)
        began = time.perf_counter()
        for _ in range(count):
            next(loader)
        return batch * count / (time.perf_counter() - began)


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each number of threads, the median images per second of each stage."""
    import torch

    torch.set_num_threads(1)
    samples = Samples(options)
    works = stages(samples)
    found: dict[str, dict[str, Any]] = {}
    for num_threads in options.threads:
        rounds: dict[str, list[float]] = {}
        for _ in range(options.runs):
            for name, work in works.items():
                got = images_per_second(work, len(samples.files), num_threads)
                rounds.setdefault(name, []).append(got)
            for way in ("bicubic_antialias", "bilinear"):
                got = loader_images_per_second(samples, way, num_threads)
                rounds.setdefault(f"loader_{way}", []).append(got)
        found[str(num_threads)] = {
            name: {"median": statistics.median(got), "range": [min(got), max(got)]}
            for name, got in rounds.items()
        }
        print(f"{num_threads} threads measured", file=sys.stderr, flush=True)
    return found


def print_tables(found: dict[str, dict[str, Any]]) -> None:
    """Milliseconds of one thread an image, images/s, and the loader against the bare loop."""
    numbers = list(found)
    head = " | ".join(f"{number} threads: ms, images/s" for number in numbers)
    print(f"| stage | {head} |\n|---|{'---|' * len(numbers)}")
    for name in found[numbers[0]]:
        cells = []
        for number in numbers:
            speed = found[number][name]["median"]
            cells.append(f"{1000 * int(number) / speed:.3f}, {speed:.0f}")
        print(f"| {name} | {' | '.join(cells)} |")
    for way in ("bicubic_antialias", "bilinear"):
        shares = [
            f"{found[n][f'loader_{way}']['median'] / found[n][f'bare_{way}']['median']:.2f}"
            for n in numbers
        ]
        print(f"| loader / bare loop, {way} | {' | '.join(shares)} |")


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in (1, 2, 4, 8, 16) if count <= cores]
    parser.add_argument("--shards", type=Path, help="folder of shards made by data_pipeline.build")
    parser.add_argument("--threads", type=int, nargs="+", default=counts, help="numbers to try")
    parser.add_argument("--images", type=int, default=512, help="images of a round")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--px", type=int, default=224, help="side of a view, in pixels")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print."""
    options = parse(sys.argv[1:])
    options.shards = (options.shards or generate_shards(GENERATED)).resolve()
    found = measure(options)
    print_tables(found)
    manifest = json.loads((options.shards / "manifest.json").read_text())
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    settings = {
        "images": options.images,
        "runs": options.runs,
        "px": options.px,
        "dataset": f"{manifest['name']}, {manifest['num_images']} images of "
        f"{num_bytes / manifest['num_images'] / 1000:.0f} KB",
    }
    about = circumstances(["torch", "torchvision", "pillow", "numpy"])
    write_json(options.json, {"threads": found, "settings": settings, "circumstances": about})


if __name__ == "__main__":
    main()
