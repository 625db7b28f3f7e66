"""Training batches per second from the same images: our loader against what others use.

    python benchmarks/loader_throughput.py [--shards DIR] [--runs 5] [--json FILE] [--plot FILE]

Contestants, each with as many threads or worker processes as there are cores:
- vitrain: `TrainLoader`, bicubic with antialiasing; bytes out, which the device normalises;
- vitrain_bilinear: the same, bilinear without antialiasing, as the ViT authors' code;
- vitrain_cuda: as vitrain, decoded and resized on a GPU (`data.decode: cuda`), where there is one;
- vitrain_whole: as vitrain without the native decoder: whole images are decoded;
- vitrain_normalised: as vitrain, normalised to float32 on the CPU;
- vitrain_prepared, vitrain_prepared_bilinear: from the shards of --prepared, the same images
  built with `--max-side 500 --quality 90`;
- bare_loop, bare_loop_bilinear: decoding the crop and resizing it in as many threads, from files
  in memory, and nothing else: what any loader on this decoder can reach;
- open_clip_recipe: webdataset, Pillow, torchvision's transforms, worker processes; float32 out;
- open_clip_bytes, open_clip_bytes_bilinear: the same with bytes out, bicubic and bilinear (Pillow
  always antialiases), so that like stands against like;
- webdataset_torchvision: webdataset with torchvision's decoder and tensors; bytes out;
- timm: `create_loader` with its webdataset reader and prefetcher; float32 out;
- ffcv_full, ffcv_recipe: FFCV, JPEG at full size, and its ImageNet recipe (at most 500 px, half of
  the images raw). It needs an environment of its own, whose interpreter is --peers-python
  (benchmarks/peers.txt says how to make it).
All make the same views: area crop 8-100 % of ratio 3/4-4/3, flip.

Without --shards, pictures that cost as much to decode as photographs are generated once into
datasets/loader-benchmark (a minute or two).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import loader_ours as ours  # noqa: E402
from benchmarks import loader_peers as peers  # noqa: E402
from benchmarks.loader_plot import plot  # noqa: E402
from benchmarks.side_by_side import ROOT, circumstances, compare, medians, write_json  # noqa: E402

BETONS = ROOT / "datasets" / "loader-benchmark-ffcv"


def ffcv_full(options: argparse.Namespace) -> Iterator[Any]:
    """FFCV from JPEG at full size."""
    return ffcv_batches(options, "ffcv_full")


def ffcv_recipe(options: argparse.Namespace) -> Iterator[Any]:
    """FFCV from its ImageNet recipe."""
    return ffcv_batches(options, "ffcv_recipe")


def ffcv_batches(options: argparse.Namespace, field: str) -> Iterator[Any]:
    """FFCV from one of its files."""
    options.beton = beton_path(options.shards, field)
    return peers.ffcv(options)


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    function.__name__: function
    for function in (
        ours.vitrain,
        ours.vitrain_bilinear,
        ours.vitrain_cuda,
        ours.vitrain_whole,
        ours.vitrain_normalised,
        ours.vitrain_prepared,
        ours.vitrain_prepared_bilinear,
        ours.bare_loop,
        ours.bare_loop_bilinear,
        peers.open_clip_recipe,
        peers.open_clip_bytes,
        peers.open_clip_bytes_bilinear,
        peers.webdataset_torchvision,
        peers.timm,
        ffcv_full,
        ffcv_recipe,
    )
}
PREPARED = ("vitrain_prepared", "vitrain_prepared_bilinear")


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
        "resident_megabytes": resident_megabytes(),
        "gives": str(first.dtype).removeprefix("torch."),
    }


def cpu_seconds() -> float:
    """Processor time of this process and its workers: tells more than a clock on a busy machine."""
    import psutil

    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def resident_megabytes() -> float:
    """Memory of this process and its workers, what they share counted once."""
    import psutil

    me = psutil.Process()
    family = (me, *me.children(recursive=True))
    return sum(process.memory_full_info().pss for process in family) / 1e6


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def beton_path(shards: Path, field: str) -> Path:
    """Where FFCV's copy of a dataset lies."""
    digest = json.loads((shards / "manifest.json").read_text())["digest"]
    return BETONS / f"{field}-{digest[:12]}.beton"


def write_betons(options: argparse.Namespace) -> None:
    """Write FFCV's copies by its own interpreter; once."""
    for field in peers.FFCV_FIELDS:
        path = beton_path(options.shards, field)
        if field not in options.contestants or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        command = [options.peers_python, __file__, f"--shards={options.shards}"]
        command += [f"--write-beton={unfinished}", f"--field={field}"]
        subprocess.run([str(part) for part in command], check=True, timeout=900, cwd=ROOT)
        unfinished.rename(path)


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shards", type=Path, help="folder of shards made by data_pipeline.build")
    add("--prepared", type=Path, help="the same images, built with --max-side 500 --quality 90")
    add("--peers-python", type=Path, help="interpreter that has FFCV (benchmarks/peers.txt)")
    add("--json", type=Path, help="file for the whole report")
    add("--plot", type=Path, help="file for a picture of the table (.svg, .png)")
    add("--runs", type=int, default=5, help="rounds (default 5)")
    add("--images", type=int, default=3072, help="images timed a run")
    add("--warm-images", type=int, default=768, help="images not timed before")
    add("--batch-images", type=int, default=64, help="images of a batch")
    add("--px", type=int, default=224, help="side of a view, in pixels")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, help="threads, or processes")
    add("--contestants", nargs="+", choices=CONTESTANTS, help="default: all that can run")
    add("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    add("--write-beton", dest="beton", type=Path, help=argparse.SUPPRESS)
    add("--field", choices=peers.FFCV_FIELDS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def report_of(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> Any:
    """Medians, their ratios to the open_clip recipe, and the circumstances."""
    report: dict[str, Any] = medians(results)
    base = report.get("open_clip_recipe", report[options.contestants[0]])["images_per_second"]
    report["ratios"] = {
        name: report[name]["images_per_second"] / base for name in options.contestants
    }
    names = ("runs", "images", "batch_images", "px", "workers")
    report["settings"] = {name: getattr(options, name) for name in names}
    report["settings"]["dataset"] = described(options.shards)
    if options.prepared is not None:
        report["settings"]["prepared"] = described(options.prepared)
    for field in peers.FFCV_FIELDS:
        path = beton_path(options.shards, field)
        if path.exists():
            report["settings"][field] = f"{path.stat().st_size / 1e6:.0f} MB"
    packages = ["torch", "torchvision", "webdataset", "timm", "pillow", "numpy"]
    report["circumstances"] = circumstances(packages)
    return report


def described(shards: Path) -> str:
    """Name and size of a dataset."""
    manifest = json.loads((shards / "manifest.json").read_text())
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    return (
        f"{manifest['name']}, {manifest['num_images']} images of "
        f"{num_bytes / manifest['num_images'] / 1000:.0f} KB, {num_bytes / 1e6:.0f} MB, digest "
        f"{manifest['digest'][:12]}"
    )


def print_table(report: dict[str, Any], names: list[str]) -> None:
    """What a page of docs/benchmarks shows."""
    print("| loader | images/s | x open_clip recipe | CPU ms an image | MB | gives |")
    print("|---|---|---|---|---|---|")
    for name in names:
        row = report[name]
        low, high = row["images_per_second_range"]
        print(
            f"| {name} | {row['images_per_second']:.0f} ({low:.0f}-{high:.0f}) "
            f"| {report['ratios'][name]:.2f} | {row['cpu_milliseconds_per_image']:.2f} "
            f"| {row['resident_megabytes']:.0f} | {row['gives']} |"
        )
    for loader, limit in (("vitrain", "bare_loop"), ("vitrain_bilinear", "bare_loop_bilinear")):
        if loader in report and limit in report:
            share = report[loader]["images_per_second"] / report[limit]["images_per_second"]
            print(f"{loader} / {limit}: {share:.2f}")
    for key, value in report["settings"].items():
        print(f"{key}: {value}")


def main() -> None:
    """Measure all contestants in turn, or the one that `--only` names."""
    options = parse(sys.argv[1:])
    if options.beton:
        options.workers = 1  # its writer's processes hang where one of them fails
        print(json.dumps(peers.write_beton(options)), flush=True)
        return
    if options.only:
        print(json.dumps(measure(options)), flush=True)
        # The peers' worker processes are daemons; waiting for their queues would take seconds.
        os._exit(0)
    options.shards = (options.shards or ours.generate_shards(ours.GENERATED)).resolve()
    if options.contestants is None:
        missing = {*(PREPARED if options.prepared is None else ())}
        missing |= {*(() if has_gpu() else ("vitrain_cuda",))}
        missing |= {*(peers.FFCV_FIELDS if options.peers_python is None else ())}
        options.contestants = [name for name in CONTESTANTS if name not in missing]
    arguments = [f"--shards={options.shards}"]
    if options.prepared is not None:
        options.prepared = options.prepared.resolve()
        arguments.append(f"--prepared={options.prepared}")
    for name in ("images", "warm_images", "batch_images", "px", "workers"):
        arguments.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    write_betons(options)
    results = compare(
        __file__,
        options.contestants,
        arguments,
        runs=options.runs,
        timeout_seconds=900,
        interpreters=dict.fromkeys(peers.FFCV_FIELDS, options.peers_python),
    )
    report = report_of(options, results)
    print_table(report, options.contestants)
    write_json(options.json, report)
    if options.plot is not None:
        plot(report, options.contestants, options.plot)


if __name__ == "__main__":
    main()
