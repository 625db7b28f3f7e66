"""One global batch, whatever the ranks and micro batches: the same bytes, the same mixture."""

import pytest
import torch

from configs.data_groups import AugmentConfig
from training.augmentation import BatchAugmentation

GLOBAL_IMAGES = 64
STEP = 5


def model_inputs(world_size: int, micro_images: int, level: str = "medium1") -> torch.Tensor:
    """What the model sees of each position of step 5, put together from all ranks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (GLOBAL_IMAGES, 3, 16, 16), dtype=torch.uint8, generator=generator
    )
    seen = torch.empty(images.shape)
    for rank in range(world_size):
        augmentation = BatchAugmentation(
            AugmentConfig(level=level),
            seed=2,
            global_images=GLOBAL_IMAGES,
            world_size=world_size,
            micro_images=micro_images,
        )
        for start in range(0, GLOBAL_IMAGES, world_size * micro_images):
            own = start + rank + world_size * torch.arange(micro_images)
            changed = augmentation.rand_augment(images[own], own + STEP * GLOBAL_IMAGES)
            seen[own] = augmentation.mixup(STEP)(changed.float())
    return seen


@pytest.mark.parametrize("split", [(1, 4), (2, 2), (2, 16), (1, 16)], ids=str)
def test_ranks_and_micro_batches_do_not_change_what_is_seen(split):
    expected = model_inputs(1, 64)
    assert torch.equal(model_inputs(*split), expected)
    assert not torch.equal(model_inputs(1, 64, "light1"), expected)


def test_where_partners_must_change_only_the_mixture_differs():
    # 64 images: partners are 2 apart, which four ranks do not hold together.
    assert not torch.equal(model_inputs(4, 16), model_inputs(1, 64))
    assert torch.equal(model_inputs(4, 16, "light1"), model_inputs(1, 64, "light1"))


def test_level_none_hands_everything_through():
    augmentation = BatchAugmentation(
        AugmentConfig(), seed=0, global_images=8, world_size=1, micro_images=8
    )
    images = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    assert augmentation.rand_augment(images, torch.arange(8)) is images
    assert augmentation.mixup(3).share == 1.0
