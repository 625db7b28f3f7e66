"""What augmentation on the device costs: bytes in, the model's input out, one micro batch.

    python benchmarks/augment_cost.py [--runs 3] [--images 128] [--side 224] [--json FILE]

Contestants: normalisation alone (`none`), with mixup, with the RandAugment and mixup of three
AugReg levels, and torchvision's RandAugment of the same depth, image by image on the same device.
On a GPU if there is one, else with `--threads` threads. The images are noise: how long an
operation takes hardly depends on what they show.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import circumstances, compare, medians, write_json  # noqa: E402
from configs.data_groups import AugmentConfig  # noqa: E402

if TYPE_CHECKING:
    import torch

OURS = {
    "none": AugmentConfig(),
    "mixup": AugmentConfig(mixup=0.2),
    "light1": AugmentConfig(level="light1"),
    "medium1": AugmentConfig(level="medium1"),
    "strong2": AugmentConfig(level="strong2"),
}
TORCHVISION = "torchvision_per_image"
CONTESTANTS = (*OURS, TORCHVISION)

Augment = Callable[["torch.Tensor", int], "torch.Tensor"]


def ours(name: str, images: int) -> Augment:
    """Our augmentation of a micro batch of `images`, as a function of it and the step."""
    import torch

    from data_pipeline.augment import normalise
    from training.augmentation import BatchAugmentation

    augmentation = BatchAugmentation(
        OURS[name], seed=0, global_images=images, world_size=1, micro_images=images
    )

    def augment(batch: torch.Tensor, step: int) -> torch.Tensor:
        positions = torch.arange(step * images, (step + 1) * images)
        return augmentation.mixup(step)(normalise(augmentation.rand_augment(batch, positions)))

    return augment


def torchvisions() -> Augment:
    """Torchvision's RandAugment of each image by itself, then normalisation."""
    import torch
    from torchvision.transforms.v2 import RandAugment

    from data_pipeline.augment import normalise

    transform = RandAugment(num_ops=2, magnitude=15)

    def augment(batch: torch.Tensor, _step: int) -> torch.Tensor:
        return normalise(torch.stack([transform(image) for image in batch]))

    return augment


def measure(name: str, images: int, side: int, steps: int, threads: int) -> dict[str, float | str]:
    """Median milliseconds of a micro batch over `steps`, after three that are not counted."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    batch = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, device=device)
    augment = torchvisions() if name == TORCHVISION else ours(name, images)
    seconds = []
    for step in range(steps + 3):
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        augment(batch, step)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[3:])
    device_name = torch.cuda.get_device_name() if on_gpu else f"CPU, {threads} threads"
    return {
        "milliseconds": 1000 * median,
        "images_per_second": images / median,
        "device": device_name,
        **({"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if on_gpu else {}),
    }


def main() -> None:
    """Measure all contestants, or the one that `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="micro batches a run (default 20)")
    parser.add_argument("--images", type=int, default=128, help="of a micro batch (default 128)")
    parser.add_argument("--side", type=int, default=224, help="of an image, in px (default 224)")
    parser.add_argument("--threads", type=int, default=1, help="without a GPU (default 1)")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("images", "side", "steps", "threads")}
    if options.only:
        print(json.dumps(measure(options.only, **sizes)))
        return
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    results = compare(__file__, CONTESTANTS, arguments, runs=options.runs, timeout_seconds=900)
    report = {**medians(results), "circumstances": circumstances(["torch", "torchvision"])}
    print(f"{report['none']['device']}, {options.images} images of {options.side} px\n")
    print("| contestant | ms a micro batch | images/s | peak MiB |\n|---|---|---|---|")
    for name in CONTESTANTS:
        row = report[name]
        peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else "-"
        print(f"| {name} | {row['milliseconds']:.2f} | {row['images_per_second']:.0f} | {peak} |")
    write_json(options.json, report)


if __name__ == "__main__":
    main()
