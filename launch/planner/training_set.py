"""How many images and classes a run has, from its shards or, before those exist, from a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.errors import RefusedInput
from configs.schema import PretrainConfig


@dataclass(frozen=True)
class TrainingSet:
    """What the planner has to know about the training images.

    Attributes:
        num_images: In one epoch.
        num_classes: Outputs of the head.
        bytes_per_image: Mean size in the shards.
        source: Where the numbers are from.
    """

    num_images: int
    num_classes: int
    bytes_per_image: float
    source: str


# By the words of `data.train` that name them. Sizes of the files as they are distributed; the mean
# sizes of ImageNet-21k and OpenImages are recalled, not measured here.
_KNOWN = {
    "in1k": TrainingSet(1_281_167, 1000, 115_000, "ILSVRC 2012 train: 148 GB"),
    "in21k": TrainingSet(14_197_122, 21_841, 92_000, "ImageNet-21k of fall 2011: 1.31 TB"),
    "openimages": TrainingSet(9_011_219, 19_958, 62_000, "OpenImages V4 train, 561 GB"),
}
_WORDS = {
    "in1k": ("in1k", "imagenet-1k", "imagenet1k", "ilsvrc2012"),
    "in21k": ("in21k", "imagenet-21k", "imagenet21k"),
    "openimages": ("openimages", "open-images", "oid"),
}


def describe_training_set(
    config: PretrainConfig,
    *,
    images: int | None,
    classes: int | None,
    bytes_per_image: float | None,
) -> TrainingSet:
    """The shards' own numbers if they are there, else the table's; what is given wins over both.

    Raises:
        RefusedInput: Neither knows, and the numbers are not given; or shards and config disagree.
    """
    found = _from_shards(config) or _from_table(config.data.train)
    classes = classes or config.model.num_classes or (found.num_classes if found else None)
    if found is None and (images is None or classes is None):
        where = (
            f"data.train = {config.data.train}" if config.data.train else "data.train is not set"
        )
        raise RefusedInput(
            f"{where}: no shards there and no known data set in the name; "
            "give --images N and --classes N"
        )
    assert classes is not None, "found or given"
    given = [
        name
        for name, value in (("--images", images), ("--bytes-per-image", bytes_per_image))
        if value is not None
    ]
    return TrainingSet(
        num_images=images or (found.num_images if found else 0),
        num_classes=classes,
        bytes_per_image=bytes_per_image or (found.bytes_per_image if found else 110_000),
        source=", ".join([*given, found.source if found else "photographs of 110 kB"]),
    )


def _from_shards(config: PretrainConfig) -> TrainingSet | None:
    from data_pipeline.index import MANIFEST_FILE, open_dataset
    from data_pipeline.location import ShardAccess, is_url
    from data_pipeline.subset import training_images

    place = config.data.train
    if place is None or not (is_url(place) or (Path(place) / MANIFEST_FILE).is_file()):
        return None
    whole = open_dataset(place, ShardAccess.from_config(config.data))
    chosen = training_images(whole, config.data, seed=config.seed)
    num_bytes = sum(shard.num_bytes for shard in whole.manifest.shards)
    return TrainingSet(
        chosen.num_images,
        chosen.num_classes,
        num_bytes / whole.num_images,
        f"the shards in {place}",
    )


def _from_table(place: str | None) -> TrainingSet | None:
    words = [part.lower() for part in Path(place).parts] if place else []
    for name, spellings in _WORDS.items():
        if any(spelling in words for spelling in spellings):
            return _KNOWN[name]
    return None
