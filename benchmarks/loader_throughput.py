"""Training batches per second from the same shards: our loader against what others use.

    python benchmarks/loader_throughput.py [--shards DIR] [--runs 5] [--json FILE]

Contestants, each with as many threads or worker processes as there are cores:
- vitrain: `TrainLoader`; bytes out, which the device normalises;
- vitrain_normalised: the same, normalised to float32 on the CPU;
- open_clip_recipe: webdataset, Pillow, torchvision's transforms, worker processes; float32 out;
- timm: `create_loader` with its webdataset reader and prefetcher; float32 out.
All make the same views: area crop 8-100 % of ratio 3/4-4/3, bicubic, flip.

Without --shards, pictures that cost as much to decode as photographs are generated once into
datasets/loader-benchmark (a minute or two).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import ROOT, circumstances, compare, medians, write_json  # noqa: E402

GENERATED = ROOT / "datasets" / "loader-benchmark"
MEAN = STD = (0.5, 0.5, 0.5)
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def vitrain(options: argparse.Namespace) -> Iterator[Any]:
    """Our loader as a training run uses it, at one rank."""
    from configs.groups import AugmentConfig, LoaderConfig
    from data_pipeline import SampleOrder, TrainLoader, TrainTransform, open_dataset

    dataset = open_dataset(options.shards)
    augment = AugmentConfig(crop_area_min=AREA[0], crop_area_max=AREA[1], crop_ratio_max=RATIO[1])
    loader = TrainLoader(
        dataset,
        SampleOrder(dataset, num_streams=768, seed=0),
        transform=TrainTransform(augment, (options.px, options.px), seed=0),
        batch_images=options.batch_images,
        loader=LoaderConfig(threads=options.workers),
    )
    for batch in loader:
        yield batch.images


def vitrain_normalised(options: argparse.Namespace) -> Iterator[Any]:
    """Our loader where there is no device to normalise on."""
    from data_pipeline import normalise

    for images in vitrain(options):
        yield normalise(images, MEAN, STD)


def open_clip_recipe(options: argparse.Namespace) -> Iterator[Any]:
    """The pipeline of open_clip's training data: webdataset, Pillow, v1 transforms, processes.

    Its shuffle buffer is smaller here (500 images), and shards repeat without end, so that neither
    its start nor the end of an epoch is counted against it.
    """
    import webdataset as wds
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(options.px, AREA, RATIO, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    samples = (
        wds.WebDataset(
            sorted(str(path) for path in options.shards.glob("*.tar")),
            shardshuffle=100,
            nodesplitter=wds.split_by_node,
            workersplitter=wds.split_by_worker,
        )
        .repeat()
        .shuffle(500, initial=100)
        .decode("pilrgb")
        .to_tuple("jpg;png;jpeg;webp", "cls")
        .map_tuple(view, int)
        .batched(options.batch_images, partial=False)
    )
    for images, _ in wds.WebLoader(samples, batch_size=None, num_workers=options.workers):
        yield images


def timm(options: argparse.Namespace) -> Iterator[Any]:
    """The loader of timm on its webdataset reader, without its default colour jitter."""
    import torch
    from timm.data import create_dataset, create_loader

    names = sorted(path.name for path in options.shards.glob("*.tar"))
    numbers = [re.search(r"(\d+)\.tar$", name).group(1) for name in (names[0], names[-1])]  # type: ignore[union-attr]
    split = names[0].replace(f"{numbers[0]}.tar", f"{{{numbers[0]}..{numbers[1]}}}.tar")
    manifest = json.loads((options.shards / "manifest.json").read_text())
    dataset = create_dataset(
        "wds/benchmark",
        root=str(options.shards),
        split=split,
        is_training=True,
        batch_size=options.batch_images,
        num_samples=manifest["num_images"],
    )
    loader = create_loader(
        dataset,
        options.px,
        options.batch_images,
        is_training=True,
        scale=AREA,
        ratio=RATIO,
        interpolation="bicubic",
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=options.workers,
        device=torch.device("cpu"),
    )
    while True:
        for images, _ in loader:
            yield images


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    function.__name__: function
    for function in (vitrain, vitrain_normalised, open_clip_recipe, timm)
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one contestant, after a warm-up that fills its queues."""
    began = time.perf_counter()
    batches = CONTESTANTS[options.only](options)
    first = next(batches)
    first_seconds = time.perf_counter() - began
    for _ in range(options.warm_images // options.batch_images):
        next(batches)
    count = -(-options.images // options.batch_images)
    began, cpu_began = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        last = next(batches)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
    assert last.shape == first.shape == (options.batch_images, 3, options.px, options.px)
    return {
        "images_per_second": count * options.batch_images / seconds,
        "cpu_milliseconds_per_image": 1000 * cpu / (count * options.batch_images),
        "first_batch_seconds": first_seconds,
        "gives": str(first.dtype).removeprefix("torch."),
    }


def cpu_seconds() -> float:
    """Processor time of this process and its workers: tells more than a clock on a busy machine."""
    import psutil

    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def generate_shards(folder: Path) -> Path:
    """Write photograph-sized fractals, 500 x 375 px of about 105 KB; once."""
    from data_pipeline.build import build_dataset
    from data_pipeline.sources import FractalOptions, FractalSource

    pictures = FractalOptions(classes=8, images_per_class=100, px=500, image_format="jpeg")
    build_dataset(FractalSource("train", pictures), None, "train", folder, shard_images=100)
    return folder


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="folder of shards made by data_pipeline.build")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--images", type=int, default=3072, help="images timed a run")
    parser.add_argument("--warm-images", type=int, default=768, help="images not timed before")
    parser.add_argument("--batch-images", type=int, default=64, help="images of a batch")
    parser.add_argument("--px", type=int, default=224, help="side of a view, in pixels")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="threads, or processes")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def report_of(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> Any:
    """Medians, their ratios to the open_clip recipe, and the circumstances."""
    manifest = json.loads((options.shards / "manifest.json").read_text())
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    report: dict[str, Any] = medians(results)
    base = report.get("open_clip_recipe", report[options.contestants[0]])["images_per_second"]
    report["ratios"] = {
        name: report[name]["images_per_second"] / base for name in options.contestants
    }
    report["settings"] = {
        "runs": options.runs,
        "images": options.images,
        "batch_images": options.batch_images,
        "px": options.px,
        "workers": options.workers,
        "dataset": f"{manifest['name']}, {manifest['num_images']} images of "
        f"{num_bytes / manifest['num_images'] / 1000:.0f} KB",
        "data_digest": manifest["digest"],
    }
    packages = ["torch", "torchvision", "webdataset", "timm", "pillow", "numpy"]
    report["circumstances"] = circumstances(packages)
    return report


def main() -> None:
    """Measure all contestants in turn, or the one that `--only` names."""
    options = parse(sys.argv[1:])
    if options.only:
        print(json.dumps(measure(options)), flush=True)
        # The peers' worker processes are daemons; waiting for their queues would take seconds.
        os._exit(0)
    options.shards = (options.shards or generate_shards(GENERATED)).resolve()
    arguments = [f"--shards={options.shards}"]
    for name in ("images", "warm_images", "batch_images", "px", "workers"):
        arguments.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    results = compare(
        __file__, options.contestants, arguments, runs=options.runs, timeout_seconds=900
    )
    report = report_of(options, results)
    print("| loader | images/s (lowest-highest) | x open_clip recipe | CPU ms an image | gives |")
    print("|---|---|---|---|---|")
    for name in options.contestants:
        row = report[name]
        low, high = row["images_per_second_range"]
        print(
            f"| {name} | {row['images_per_second']:.0f} ({low:.0f}-{high:.0f}) "
            f"| {report['ratios'][name]:.2f} | {row['cpu_milliseconds_per_image']:.2f} "
            f"| {row['gives']} |"
        )
    write_json(options.json, report)


if __name__ == "__main__":
    main()
