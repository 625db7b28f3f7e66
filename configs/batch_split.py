"""How one optimizer step's images divide into ranks, micro batches and accumulation."""

from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from configs.groups import BatchConfig


def split_batch(batch: BatchConfig, world_size: int) -> tuple[int, int]:
    """Micro batch and accumulation with `global = world size x micro x accumulation`.

    Returns:
        (micro_images, accumulation_steps): images of one forward pass of one rank, and forward
        passes of one optimizer step.

    Raises:
        RefusedInput: The global batch does not divide; the message lists values that would.
    """
    total = batch.global_images
    if total % world_size:
        below = total // world_size * world_size
        sizes = " or ".join(str(v) for v in (below, below + world_size) if v)
        ranks = ", ".join(str(v) for v in _divisors(total) if v <= 2 * world_size)
        raise RefusedInput(
            f"batch.global_images = {total} does not divide by the world size {world_size}; "
            f"use a batch of {sizes}, or one of these world sizes: {ranks}"
        )
    per_rank = total // world_size
    if batch.accumulation_steps is not None:
        name, given = "accumulation_steps", batch.accumulation_steps
    else:
        name, given = "micro_images", batch.micro_images or per_rank
    if per_rank % given:
        values = ", ".join(str(v) for v in _divisors(per_rank))
        raise RefusedInput(
            f"batch.{name} = {given} does not divide the {per_rank} images that each of "
            f"{world_size} ranks has of batch.global_images = {total}; use one of: {values}"
        )
    other = per_rank // given
    return (other, given) if name == "accumulation_steps" else (given, other)


def check_mixup(augment: AugmentConfig, micro_images: int) -> None:
    """Refuse mixup that nobody could take part in.

    Raises:
        RefusedInput: Micro batches have one image, and mixup would mix it with itself.
    """
    if augment.mixup_alpha and micro_images == 1:
        raise RefusedInput(
            f"mixup (augment.level = {augment.level}, augment.mixup = {augment.mixup}) mixes the "
            "images of a micro batch, which have 1 image each: give --batch.micro-images 2 or "
            "more, or --augment.mixup 0"
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
