"""Advice: one sentence for each poor setting, none otherwise."""

import re

import pytest

from data_pipeline.class_mixing import Mixed, Mixing
from data_pipeline.simulated_reading import Simulation
from data_pipeline.simulation import make_order
from data_pipeline.simulation_advice import advise
from tests.data_pipeline.sample_fleets import fleet_of

GOOD_MIXING = Mixing(*[Mixed(100, 1)] * 3)


def sorted_mixing(classes, clumping):
    return GOOD_MIXING._replace(sorted=Mixed(classes, clumping))


MANY_STREAMS = {"streams": 400, "images": 40000, "shards": 4000, "image_bytes": 2e6}

ADVICE = {
    "nothing": ({}, GOOD_MIXING, None),
    "streams": ({"world_size": 3, "batch_images": 63}, GOOD_MIXING, "3 ranks do not divide 4"),
    "shards": ({"shards": 6}, GOOD_MIXING, "make at least 40 shards, or take fewer streams"),
    "open": (MANY_STREAMS, GOOD_MIXING, "reads from 100 sh"),
    "batch": ({"batch_images": 66}, GOOD_MIXING, "66 does not divide by 4 ranks: .* take 64"),
    "cache": ({"cache_bytes": 60e6}, GOOD_MIXING, "cache of 60 MB is too small: .* give 100 MB"),
    "sorted": (
        {"sorted": True},
        Mixing(Mixed(99, 1), Mixed(89, 1), Mixed(100, 1)),
        "89 classes in a batch instead of 100",
    ),
    "clumps": (
        {"sorted": True},
        Mixing(Mixed(10, 1), Mixed(10, 3.2), Mixed(10, 1)),
        "clumps of 3.2",
    ),
    "unsorted": ({}, sorted_mixing(20, 9), None),
    "small": ({"image_bytes": 1e5}, GOOD_MIXING, "shards of 2 MB are small"),
    "large": ({"image_bytes": 200e6}, GOOD_MIXING, "shards of 4 GB are large"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_is_given_where_it_is_due_and_only_there(case):
    changes, mixed, expected = ADVICE[case]
    fleet = fleet_of(**changes)
    advice = list(advise(fleet, Simulation(fleet, make_order(fleet)).reading, mixed))
    if expected is None:
        assert advice == []
    else:
        assert len(advice) == 1
        assert re.search(expected, advice[0])
