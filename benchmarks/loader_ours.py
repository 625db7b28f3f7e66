"""Our loader as a benchmark's contestant, what bounds it, and the pictures it reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import loader_peers as peers
from benchmarks.side_by_side import ROOT

GENERATED = ROOT / "datasets" / "loader-benchmark"
PLAIN = {"interpolation": "bilinear", "antialias": False}
BARE_IMAGES = 800  # held in memory by the bare loop


def our_transform(options: argparse.Namespace, *, decode: Any = "cpu", **augment: Any) -> Any:
    """The views of all contestants."""
    from configs.data_groups import AugmentConfig
    from data_pipeline import TrainTransform

    (area_min, area_max), (_, ratio_max) = peers.AREA, peers.RATIO
    area = {"crop_area_min": area_min, "crop_area_max": area_max, "crop_ratio_max": ratio_max}
    size = (options.px, options.px)
    return TrainTransform(AugmentConfig(**area, **augment), size, seed=0, decode=decode)


def our_loader(options: argparse.Namespace, shards: Path, **views: Any) -> Iterator[Any]:
    """Our loader as a training run uses it, at one rank."""
    from configs.data_groups import LoaderConfig
    from data_pipeline import SampleOrder, TrainLoader, open_dataset

    dataset = open_dataset(shards)
    loader = TrainLoader(
        dataset,
        SampleOrder(dataset, num_streams=768, seed=0),
        transform=our_transform(options, **views),
        batch_images=options.batch_images,
        loader=LoaderConfig(threads=options.workers),
    )
    for batch in loader:
        yield batch.images


def vitrain(options: argparse.Namespace) -> Iterator[Any]:
    """Bicubic with antialiasing, our default."""
    return our_loader(options, options.shards)


def vitrain_bilinear(options: argparse.Namespace) -> Iterator[Any]:
    """Bilinear without antialiasing."""
    return our_loader(options, options.shards, **PLAIN)


def vitrain_cuda(options: argparse.Namespace) -> Iterator[Any]:
    """Our default with `data.decode: cuda`."""
    return our_loader(options, options.shards, decode="cuda")


def vitrain_prepared(options: argparse.Namespace) -> Iterator[Any]:
    """Our default on images that were made smaller beforehand."""
    return our_loader(options, options.prepared)


def vitrain_prepared_bilinear(options: argparse.Namespace) -> Iterator[Any]:
    """Bilinear without antialiasing on images that were made smaller beforehand."""
    return our_loader(options, options.prepared, **PLAIN)


def vitrain_whole(options: argparse.Namespace) -> Iterator[Any]:
    """Our loader on an install without the native decoder."""
    from data_pipeline import augment, jpeg_crop

    augment.jpeg_cropper = jpeg_crop.jpeg_cropper = lambda: None  # type: ignore[assignment]
    return vitrain(options)


def vitrain_normalised(options: argparse.Namespace) -> Iterator[Any]:
    """Our loader where there is no device to normalise on."""
    from data_pipeline import normalise

    for images in vitrain(options):
        yield normalise(images, peers.MEAN, peers.STD)


def bare_loop(options: argparse.Namespace, **augment: Any) -> Iterator[Any]:
    """Crops decoded and resized, bicubic with antialiasing; no reading, no order, no batch."""
    import queue
    import threading

    import torch

    from data_pipeline import SampleOrder, open_dataset
    from data_pipeline.shard_reader import ShardReader

    dataset = open_dataset(options.shards)
    order, reader = SampleOrder(dataset, num_streams=768, seed=0), ShardReader(dataset)
    files = [reader.read(order.row_at(p)) for p in range(min(len(dataset), BARE_IMAGES))]
    transform, size = our_transform(options, **augment), (options.px, options.px)
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def work(first: int) -> None:
        torch.get_num_threads()  # takes the default, which would undo the next line
        torch.set_num_threads(1)
        for position in range(first, sys.maxsize, options.workers):
            data = files[position % len(files)]
            crop = transform.decode(data, position, max_pixels=178_956_970)
            transform.resize(getattr(crop, "pixels", crop), size)
            done.put(1)

    for first in range(options.workers):
        threading.Thread(target=work, args=(first,), daemon=True).start()
    placeholder = torch.empty((options.batch_images, 3, *size), dtype=torch.uint8)
    while True:
        for _ in range(options.batch_images):
            done.get()
        yield placeholder


def bare_loop_bilinear(options: argparse.Namespace) -> Iterator[Any]:
    """The same, bilinear without antialiasing."""
    return bare_loop(options, **PLAIN)


def generate_shards(folder: Path, shard_images: int = 100) -> Path:
    """Write photograph-sized fractals, 500 x 375 px of about 105 KB; once."""
    from data_pipeline.build import build_dataset
    from data_pipeline.sources import FractalOptions, FractalSource

    pictures = FractalOptions(classes=8, images_per_class=100, px=500, image_format="jpeg")
    build_dataset(
        FractalSource("train", pictures), None, "train", folder, shard_images=shard_images
    )
    return folder
