"""Whether shards can be read: an image of some of them, before anything slow starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.errors import RefusedInput

if TYPE_CHECKING:
    from data_pipeline.index import ShardedDataset

_SAMPLED_SHARDS = 8


def read_some(dataset: ShardedDataset) -> int:
    """Read the first image of some shards, spread evenly; gives how many.

    Raises:
        RefusedInput: One cannot be read, or is not of the size that the manifest says.
    """
    import numpy as np

    from data_pipeline.broken import BrokenImage, BrokenShard
    from data_pipeline.shard_reader import ShardReader

    _, first_rows = np.unique(dataset.shard, return_index=True)
    every = max(1, len(first_rows) // _SAMPLED_SHARDS)
    reader = ShardReader(dataset)
    sample = first_rows[::every]
    try:
        for row in sample:
            name = dataset.manifest.shards[int(dataset.shard[row])].path
            try:
                reader.read(int(row))
            except (BrokenShard, BrokenImage, OSError) as problem:
                raise RefusedInput(
                    f"{dataset.place}: shard {name} cannot be read: {problem}; "
                    f"`python -m data_pipeline.verify {dataset.place}` looks at all of them"
                ) from problem
    finally:
        reader.close()
    return len(sample)
