"""What remote training shards cost, over all ranks, as metrics of the run."""

from __future__ import annotations

from collections import Counter

import torch.distributed as dist

from pretrain.state import Training
from tracking import metric_names as names

_SUMS = {
    names.REMOTE_BYTES: "bytes_fetched",
    names.REMOTE_SHARDS: "shards_fetched",
    names.REMOTE_RETRIES: "retries",
    names.REMOTE_WAIT_SECONDS: "wait_seconds",
    names.STRAIGHT_READS: "straight_reads",
}


def remote_metrics(training: Training) -> dict[str, float]:
    """What reading from elsewhere cost since the last call, summed over ranks; a collective.

    Empty where all shards are local files: the manifest says so to every rank alike.
    """
    if not training.loader.has_remote_shards:
        return {}
    found: list[dict[str, float]] = [{}] * training.plan.ranks.world_size
    dist.all_gather_object(found, training.loader.remote_statistics())
    return metrics_of(found)


def metrics_of(counts_of_ranks: list[dict[str, float]]) -> dict[str, float]:
    """Metrics by name, of the counters that each rank's `RemoteStatistics` gave."""
    counts: Counter[str] = Counter()
    for counts_of_rank in counts_of_ranks:
        counts.update(counts_of_rank)  # type: ignore[arg-type]
    values = {name: float(counts[counter]) for name, counter in _SUMS.items()}
    images = counts["hits"] + counts["misses"]
    if images:
        values[names.CACHE_HIT_FRACTION] = counts["hits"] / images
    return values
