"""What a reading thread does for one slot of a batch: read, decode, transform."""

from __future__ import annotations

from functools import partial

from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.batch import PADDING_ROW, Batch
from data_pipeline.broken import BrokenList
from data_pipeline.decode import decode_image
from data_pipeline.image_reader import ImageReader, naming


def fill_train_slot(
    reader: ImageReader,
    transform: TrainTransform,
    slots: list[tuple[int, int]],
    met: set[int],
    batch: Batch,
    slot: int,
) -> None:
    """Put the view of `slots[slot]` (position, row), or of its substitute, into a batch.

    `met` takes up the broken rows met on the way; the slot is black where no substitute was found.
    """
    position, row = slots[slot]
    with naming(reader, row):
        found = reader.readable_image(row, met, partial(transform.decode, position=position))
        if found is None:
            batch.images[slot].zero_()
        else:
            row, image = found
            transform(image, position, batch.images[slot])
    batch.set_source(slot, row, reader.label(row))


def fill_eval_slot(
    reader: ImageReader,
    transform: EvalTransform,
    rows: list[int],
    broken: BrokenList,
    batch: Batch,
    slot: int,
) -> None:
    """Put the image of `rows[slot]` into a batch; broken ones are listed, and black."""
    row, image = rows[slot], None
    if row != PADDING_ROW:
        with naming(reader, row):
            image = reader.image(row, decode_image)
            if image is None:
                broken.add(reader.record(row))
            else:
                transform(image, batch.images[slot])
                batch.set_source(slot, row, reader.label(row))
    if image is None:
        batch.images[slot].zero_()
