"""Other people's loaders, each as a generator of batches from the same shards.

Functions take the options of loader_throughput.py. All but FFCV's run in our own environment; FFCV
needs one of its own (`--peers-python`), so nothing of ours is imported here.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MEAN = STD = (0.5, 0.5, 0.5)
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
IMAGE_NAMES = "jpg;png;jpeg;webp"
# FFCV starts its threads anew every epoch; an epoch of so many images keeps that out of the timing.
FFCV_EPOCH_IMAGES = 20_000
FFCV_FIELDS: dict[str, dict[str, Any]] = {
    "ffcv_full": {"write_mode": "jpg", "jpeg_quality": 90},
    "ffcv_recipe": {
        "write_mode": "proportion",
        "max_resolution": 500,
        "compress_probability": 0.5,
        "jpeg_quality": 90,
    },
}


def shard_paths(options: argparse.Namespace) -> list[str]:
    """The tars of the benchmark's shards, in order."""
    return sorted(str(path) for path in options.shards.glob("*.tar"))


def webdataset_batches(
    options: argparse.Namespace, decode: str | None, view: Callable[[Any], Any]
) -> Iterator[Any]:
    """The webdataset package in worker processes.

    The shuffle buffer is smaller than usual (500 images), and shards repeat without end, so that
    neither its start nor the end of an epoch is counted against it.
    """
    import webdataset as wds

    samples = wds.WebDataset(
        shard_paths(options),
        shardshuffle=100,
        nodesplitter=wds.split_by_node,
        workersplitter=wds.split_by_worker,
    )
    samples = samples.repeat().shuffle(500, initial=100)
    if decode is not None:
        samples = samples.decode(decode)
    samples = samples.to_tuple(IMAGE_NAMES, "cls").map_tuple(view, int)
    samples = samples.batched(options.batch_images, partial=False)
    for images, _ in wds.WebLoader(samples, batch_size=None, num_workers=options.workers):
        yield images


def open_clip(
    options: argparse.Namespace, *, interpolation: str = "bicubic", as_bytes: bool = False
) -> Iterator[Any]:
    """The pipeline of open_clip's training data: Pillow, torchvision's v1 transforms."""
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(options.px, AREA, RATIO, interpolation=mode),
            transforms.RandomHorizontalFlip(),
            *([transforms.PILToTensor()] if as_bytes else to_tensor),
        ]
    )
    return webdataset_batches(options, "pilrgb", view)


def open_clip_recipe(options: argparse.Namespace) -> Iterator[Any]:
    """As open_clip trains: bicubic, float32."""
    return open_clip(options)


def open_clip_bytes(options: argparse.Namespace) -> Iterator[Any]:
    """Bicubic, bytes."""
    return open_clip(options, as_bytes=True)


def open_clip_bytes_bilinear(options: argparse.Namespace) -> Iterator[Any]:
    """Bilinear, bytes."""
    return open_clip(options, interpolation="bilinear", as_bytes=True)


def webdataset_torchvision(options: argparse.Namespace) -> Iterator[Any]:
    """The webdataset package with torchvision's decoder and tensor transforms, bicubic, bytes."""
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    view = v2.Compose(
        [
            v2.RandomResizedCrop(
                options.px, AREA, RATIO, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(),
        ]
    )

    def read(data: bytes) -> torch.Tensor:
        file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return view(decode_image(file, ImageReadMode.RGB))

    return webdataset_batches(options, None, read)


def shard_range(shards: Path) -> str:
    """The shards as the webdataset package writes a range: name-{000000..000007}.tar."""
    names = sorted(path.name for path in shards.glob("*.tar"))
    first, last = (re.search(r"(\d+)\.tar$", name).group(1) for name in (names[0], names[-1]))  # type: ignore[union-attr]
    return names[0].replace(f"{first}.tar", f"{{{first}..{last}}}.tar")


def timm_loader(options: argparse.Namespace, device: Any, num_samples: int) -> Any:
    """The loader of timm on its webdataset reader, without its default colour jitter.

    An epoch has `num_samples` images, of which there may be fewer.
    """
    from timm.data import create_dataset, create_loader

    dataset = create_dataset(
        "wds/benchmark",
        root=str(options.shards),
        split=shard_range(options.shards),
        is_training=True,
        batch_size=options.batch_images,
        num_samples=num_samples,
    )
    return create_loader(
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
        device=device,
    )


def timm(options: argparse.Namespace) -> Iterator[Any]:
    """Timm's loader, for a CPU."""
    import torch

    manifest = json.loads((options.shards / "manifest.json").read_text())
    loader = timm_loader(options, torch.device("cpu"), manifest["num_images"])
    while True:
        for images, _ in loader:
            yield images


def ffcv(options: argparse.Namespace) -> Iterator[Any]:
    """FFCV's loader in threads: whole images decoded, resized by area, bytes."""
    import numpy as np
    from ffcv.fields.decoders import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    crop = RandomResizedCropRGBImageDecoder((options.px, options.px), AREA, RATIO)
    num_images = json.loads((options.shards / "manifest.json").read_text())["num_images"]
    loader = Loader(
        str(options.beton),
        batch_size=options.batch_images,
        num_workers=options.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        indices=np.arange(FFCV_EPOCH_IMAGES) % num_images,
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    while True:
        for images, _ in loader:
            yield images


class TarImages:
    """The images of the shards as FFCV's writer asks for them: (Pillow image, label)."""

    def __init__(self, paths: list[str]) -> None:
        """Read all files into memory."""
        self.files = []
        for path in paths:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.rpartition(".")[2] in IMAGE_NAMES.split(";"):
                        file = tar.extractfile(member)
                        assert file is not None, f"{member.name} is no regular file"
                        self.files.append(file.read())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        """An image, decoded, and a label of no meaning."""
        from PIL import Image

        return Image.open(io.BytesIO(self.files[number])).convert("RGB"), 0


def write_beton(options: argparse.Namespace) -> dict[str, float]:
    """Write the shards' images in FFCV's format, as `options.field` (a key of FFCV_FIELDS) says."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(**FFCV_FIELDS[options.field]), "label": IntField()}
    writer = DatasetWriter(str(options.beton), fields, num_workers=options.workers)
    writer.from_indexed_dataset(TarImages(shard_paths(options)), shuffle_indices=False)
    return {"megabytes": options.beton.stat().st_size / 1e6}
