"""global images = world size x micro images x accumulation steps, or a refusal that helps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.batch_split import split_batch
from configs.errors import RefusedInput
from configs.groups import BatchConfig


@given(
    world=st.integers(1, 64),
    micro=st.integers(1, 64),
    accumulation=st.integers(1, 16),
    named=st.sampled_from(["micro_images", "accumulation_steps", "neither"]),
)
def test_the_parts_multiply_to_the_whole(world, micro, accumulation, named):
    total = world * micro * accumulation
    given_part = {"micro_images": micro, "accumulation_steps": accumulation}.get(named)
    batch = BatchConfig(global_images=total, **({named: given_part} if given_part else {}))
    expected = (micro, accumulation) if given_part else (total // world, 1)
    assert split_batch(batch, world) == expected


def test_a_world_size_that_does_not_divide_lists_what_would():
    with pytest.raises(RefusedInput, match=r"world size 3; use a batch of 63 or 66.*: 1, 2, 4$"):
        split_batch(BatchConfig(global_images=64), 3)


@pytest.mark.parametrize("part", ["micro_images", "accumulation_steps"])
def test_a_part_that_does_not_divide_lists_what_would(part):
    with pytest.raises(RefusedInput, match=rf"batch.{part} = 5 .*use one of: 1, 2, 4, 8, 16, 32$"):
        split_batch(BatchConfig(global_images=64, **{part: 5}), 2)


def test_both_parts_at_once_are_refused():
    with pytest.raises(ValueError, match="give at most one"):
        BatchConfig(global_images=64, micro_images=2, accumulation_steps=2)
