"""The index of a dataset, and `python -m data_pipeline.index`, which makes one for foreign shards.

What a dataset is lies in `manifest.py` and `dataset.py`; both are re-exported here.
"""

from data_pipeline.dataset import (
    INDEX_SCHEMA,
    ShardedDataset,
    open_dataset,
    read_index,
    write_index,
)
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, ShardEntry

__all__ = [
    "INDEX_FILE",
    "INDEX_SCHEMA",
    "MANIFEST_FILE",
    "Manifest",
    "ShardEntry",
    "ShardedDataset",
    "open_dataset",
    "read_index",
    "write_index",
]
