"""From image files to batches: shards, index, sample order, decoding, loading.

The way through: `open_dataset(folder)` reads manifest and index; `SampleOrder` maps global
positions to images; `TrainLoader` turns a position into an endless stream of uint8 batches, and
`EvalLoader` scores every image once over all ranks. `TrainTransform` and `EvalTransform` say what a
batch shows; `normalise` makes it the model's input, on the device. `python -m data_pipeline.build`
writes shards in the first place.

What reads no images is imported without torch; the names below are loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.augment import MEAN, STD, EvalTransform, TrainTransform, normalise
    from data_pipeline.broken import (
        BrokenImage,
        BrokenRecord,
        append_quarantine,
        broken_budget,
        check_broken_budget,
    )
    from data_pipeline.decode import decode_image
    from data_pipeline.index import Manifest, ShardedDataset, open_dataset
    from data_pipeline.loader import Batch, EvalLoader, LoadingFailed, TrainLoader
    from data_pipeline.order import SampleOrder, random_generator

__all__ = [
    "MEAN",
    "STD",
    "Batch",
    "BrokenImage",
    "BrokenRecord",
    "EvalLoader",
    "EvalTransform",
    "LoadingFailed",
    "Manifest",
    "SampleOrder",
    "ShardedDataset",
    "TrainLoader",
    "TrainTransform",
    "append_quarantine",
    "broken_budget",
    "check_broken_budget",
    "decode_image",
    "normalise",
    "open_dataset",
    "random_generator",
]

_MODULE_OF = {
    "MEAN": "augment",
    "STD": "augment",
    "Batch": "loader",
    "BrokenImage": "broken",
    "BrokenRecord": "broken",
    "EvalLoader": "loader",
    "EvalTransform": "augment",
    "LoadingFailed": "loader",
    "Manifest": "index",
    "SampleOrder": "order",
    "ShardedDataset": "index",
    "TrainLoader": "loader",
    "TrainTransform": "augment",
    "append_quarantine": "broken",
    "broken_budget": "broken",
    "check_broken_budget": "broken",
    "decode_image": "decode",
    "normalise": "augment",
    "open_dataset": "index",
    "random_generator": "order",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
