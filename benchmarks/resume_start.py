"""Seconds until the first batch, at the start and at 90 % of the third epoch.

    python benchmarks/resume_start.py [--shards DIR] [--runs 5] [--json FILE]

Contestants:
- vitrain: `TrainLoader` at a position;
- webdataset_slice: raw samples are passed over in each worker before decoding, the best that a
  webdataset pipeline can do;
- webdataset_drop: decoded batches are passed over in the training loop, what
  `accelerate.skip_first_batches` does;
- streaming: MosaicML's StreamingDataLoader, told its state. Needs --peers-python
  (benchmarks/peers.txt), reads a copy of the images in its own format.
webdataset has no position beyond the epoch, so its third epoch is the shuffle of another seed.

Every measurement is a fresh process. The clock starts after the imports, before the dataset object
is made, and stops with the first batch in hand. Without --shards, 20,000 small pictures are
generated once into datasets/resume-benchmark (some minutes).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.loader_peers import IMAGE_NAMES, TarImages, shard_paths  # noqa: E402
from benchmarks.side_by_side import ROOT, circumstances, compare, medians, write_json  # noqa: E402

GENERATED = ROOT / "datasets" / "resume-benchmark"
MDS = ROOT / "datasets" / "resume-benchmark-mds"
EPOCH = 2  # the third
PLACES = ("start", "late")
LATE = 0.9
PX = 32


def passed_over(options: argparse.Namespace) -> int:
    """Images of the epoch before the first batch, a whole number of batches of all workers."""
    if options.place == "start":
        return 0
    manifest = json.loads((options.shards / "manifest.json").read_text())
    step = options.batch_images * options.workers
    return int(manifest["num_images"] * LATE) // step * step


def vitrain(options: argparse.Namespace) -> Any:
    """Our loader, told its position."""
    from configs.data_groups import AugmentConfig, LoaderConfig
    from data_pipeline import SampleOrder, TrainLoader, TrainTransform, open_dataset

    dataset = open_dataset(options.shards)
    epochs = EPOCH if options.place == "late" else 0
    loader = TrainLoader(
        dataset,
        SampleOrder(dataset, num_streams=768, seed=0),
        transform=TrainTransform(AugmentConfig(), (PX, PX), seed=0),
        batch_images=options.batch_images,
        position=epochs * dataset.num_images + passed_over(options),
        loader=LoaderConfig(threads=options.workers),
    )
    return next(loader).images


def pillow_view() -> Any:
    """The peers' view."""
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(PX, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def webdataset_batches(options: argparse.Namespace, skip_in_worker: int) -> Iterator[Any]:
    """Batches of one epoch, some raw samples of each worker passed over."""
    import webdataset as wds

    samples = (
        wds.WebDataset(
            shard_paths(options),
            shardshuffle=100,
            seed=EPOCH if options.place == "late" else 0,
            nodesplitter=wds.split_by_node,
            workersplitter=wds.split_by_worker,
        )
        .shuffle(500, initial=100)
        .slice(skip_in_worker, sys.maxsize)
        .decode("pilrgb")
        .to_tuple(IMAGE_NAMES, "cls")
        .map_tuple(pillow_view(), int)
        .batched(options.batch_images, partial=False)
    )
    for images, _ in wds.WebLoader(samples, batch_size=None, num_workers=options.workers):
        yield images


def webdataset_slice(options: argparse.Namespace) -> Any:
    """Raw samples passed over in the workers."""
    return next(webdataset_batches(options, passed_over(options) // options.workers))


def webdataset_drop(options: argparse.Namespace) -> Any:
    """Decoded batches passed over in the training loop."""
    batches = webdataset_batches(options, 0)
    for _ in range(passed_over(options) // options.batch_images):
        next(batches)
    return next(batches)


def streaming(options: argparse.Namespace) -> Any:
    """MosaicML's loader, told its state."""
    from PIL import Image
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    view = pillow_view()

    class Pictures(StreamingDataset):
        def __getitem__(self, number: int) -> tuple[Any, int]:
            sample = super().__getitem__(number)
            return view(Image.open(io.BytesIO(sample["image"])).convert("RGB")), 0

    clean_stale_shared_memory()
    # Its seed is its own; one node, so that it does not depend on the machine.
    dataset = Pictures(
        local=str(MDS), shuffle=True, batch_size=options.batch_images, num_canonical_nodes=1
    )
    loader = StreamingDataLoader(
        dataset, batch_size=options.batch_images, num_workers=options.workers, drop_last=True
    )
    if options.place == "late":
        state = {
            "epoch": EPOCH,
            "sample_in_epoch": passed_over(options),
            "num_canonical_nodes": 1,
            "shuffle_seed": dataset.shuffle_seed,
            "initial_physical_nodes": 1,
        }
        loader.load_state_dict(state)
    return next(iter(loader))[0]


def write_mds(options: argparse.Namespace) -> None:
    """Write the images in MosaicML's format."""
    from streaming import MDSWriter

    shutil.rmtree(MDS, ignore_errors=True)
    unfinished = MDS.with_name(f"{MDS.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    columns = {"image": "bytes"}
    with MDSWriter(out=str(unfinished), columns=columns, size_limit=2 << 20) as writer:
        for file in TarImages(shard_paths(options)).files:
            writer.write({"image": file})
    unfinished.rename(MDS)


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    function.__name__: function
    for function in (vitrain, webdataset_slice, webdataset_drop, streaming)
}

MODULES = {"vitrain": "data_pipeline.loader", "streaming": "streaming"}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Time one contestant at one place."""
    name, _, options.place = options.only.partition("@")
    for module in ("torchvision", MODULES.get(name, "webdataset")):
        import_module(module)
    began = time.perf_counter()
    images = CONTESTANTS[name](options)
    seconds = time.perf_counter() - began
    assert images.shape == (options.batch_images, 3, PX, PX)
    return {"seconds": seconds}


def generate_shards(folder: Path) -> Path:
    """Write 20,000 fractals of 32 x 32 px in shards of 500; once."""
    from data_pipeline.build import build_dataset
    from data_pipeline.sources import FractalOptions, FractalSource

    pictures = FractalOptions(classes=20, images_per_class=1000, px=PX, image_format="jpeg")
    build_dataset(FractalSource("train", pictures), None, "train", folder, shard_images=500)
    return folder


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="folder of shards made by data_pipeline.build")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--batch-images", type=int, default=64, help="images of a batch")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="threads, or processes")
    parser.add_argument(
        "--peers-python", type=Path, help="interpreter that has streaming (benchmarks/peers.txt)"
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, help="default: all that can run"
    )
    parser.add_argument("--write-mds", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="NAME@PLACE", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure all contestants at both places in turn, or the one that `--only` names."""
    options = parse(sys.argv[1:])
    if options.write_mds:
        write_mds(options)
        return
    if options.only:
        print(json.dumps(measure(options)), flush=True)
        os._exit(0)  # the workers are daemons; waiting for their queues would take seconds
    options.shards = (options.shards or generate_shards(GENERATED)).resolve()
    arguments = [f"--shards={options.shards}"]
    for name in ("batch_images", "workers"):
        arguments.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    contestants = options.contestants or [
        name for name in CONTESTANTS if name != "streaming" or options.peers_python
    ]
    if "streaming" in contestants:
        command = [str(options.peers_python), __file__, *arguments, "--write-mds"]
        subprocess.run(command, check=True, timeout=300, cwd=ROOT)
    names = [f"{name}@{place}" for name in contestants for place in PLACES]
    results = compare(
        __file__,
        names,
        arguments,
        runs=options.runs,
        timeout_seconds=600,
        interpreters={f"streaming@{place}": options.peers_python for place in PLACES},
    )
    report: dict[str, Any] = medians(results)
    print("| loader | first batch at the start, s | at 90 % of epoch 3, s |\n|---|---|---|")
    for name in contestants:
        cells = []
        for place in PLACES:
            row = report[f"{name}@{place}"]
            low, high = row["seconds_range"]
            cells.append(f"{row['seconds']:.3f} ({low:.3f}-{high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |")
    report["settings"] = {
        name: getattr(options, name) for name in ("runs", "batch_images", "workers")
    }
    report["circumstances"] = circumstances(["torch", "torchvision", "webdataset", "pyarrow"])
    write_json(options.json, report)


if __name__ == "__main__":
    main()
