"""Metrics of remote shards: sums over ranks, and the share of images found in the cache."""

from pretrain.remote_report import metrics_of


def test_counters_of_all_ranks_are_added_up():
    ranks = [
        {"bytes_fetched": 1000, "shards_fetched": 1, "hits": 6, "misses": 1, "wait_seconds": 0.5},
        {"hits": 2, "misses": 1, "wait_seconds": 0.25, "retries": 3, "straight_reads": 2},
    ]
    assert metrics_of(ranks) == {
        "data/remote_bytes": 1000,
        "data/remote_shards": 1,
        "data/remote_retries": 3,
        "data/remote_wait_seconds": 0.75,
        "data/straight_reads": 2,
        "data/cache_hit_fraction": 0.8,
    }


def test_without_a_cache_there_is_no_hit_fraction():
    assert "data/cache_hit_fraction" not in metrics_of([{"bytes_fetched": 10}, {}])
