"""Small datasets whose images show several classes, written by the stream writer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.build import build_dataset
from data_pipeline.index import ShardedDataset, open_dataset
from data_pipeline.label_sets import LabelSet
from data_pipeline.sources import StreamedImage
from tests.data_pipeline.sample_shards import encode


@dataclass
class LabelSetStream:
    """Noisy 16 px images: class c is known of two images in three, and there in every second."""

    count: int
    num_classes: int
    name: str = "sets"
    split: str = "train"
    num_images: int | None = None
    num_bytes: int = 1

    def __post_init__(self):
        self.classes = tuple(f"class{number}" for number in range(self.num_classes))

    def stream(self, start=0):
        generator = np.random.default_rng(0)
        for number in range(self.count):
            known = [c for c in range(self.num_classes) if (number + c) % 3]
            positive = tuple(c for c in known if (number // 2 + c) % 2)
            negative = tuple(c for c in known if (number // 2 + c) % 2 == 0)
            data = encode(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            if number >= start:
                labels = LabelSet(positive, negative)
                yield StreamedImage(labels, f"image {number}", partial(bytes, data))

    def fingerprint(self):
        return "0"

    def options(self):
        return {}

    def notices(self):
        return []


def label_set_dataset(folder: Path, count: int = 24, num_classes: int = 4) -> ShardedDataset:
    """Write and open such a dataset, in two shards."""
    build_dataset(LabelSetStream(count, num_classes), None, "train", folder, shards=2, workers=1)
    return open_dataset(folder)
