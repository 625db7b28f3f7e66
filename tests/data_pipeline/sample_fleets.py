"""A small fleet for tests of the simulation."""

from data_pipeline.simulation import Fleet


def fleet_of(**changes):
    options = {
        "images": 4000,
        "shards": 200,
        "image_bytes": 1e6,
        "classes": 10,
        "world_size": 4,
        "ranks_per_node": 2,
        "streams": 4,
        "batch_images": 64,
        "images_per_second": 100.0,
        "seed": 0,
    }
    return Fleet(**{**options, **changes})
