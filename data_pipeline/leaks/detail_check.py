"""The third check, of photographs: do their details agree too?

At 32 x 32 px two orchids before a black wall are alike. Pairs of images that are large enough are
therefore compared once more, at 96 px and by their details alone: what a blur of 3 px takes away.
Copies, placed as the second check found them, keep a distance below 0.15, seldom 0.3;
different photographs of such things were seen from 0.4 on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from configs.data_groups import LoaderConfig
from data_pipeline.broken import BrokenList
from data_pipeline.dataset import ShardedDataset
from data_pipeline.image_reader import ImageReader
from data_pipeline.leaks.held_out import HeldOutImages
from data_pipeline.leaks.pixel_check import sampling
from data_pipeline.leaks.scan import thumbnail
from data_pipeline.leaks.views import Floats

_SIDE_PX = 96
_MAX_DISTANCE = 0.3
# Pairs nearer than this at 32 px are copies without asking; a placeholder makes millions of them.
_SURE_BELOW = 0.01
# Compression leaves its noise where there is no detail, so these smooth by 1 px, and pairs whose
# details are weaker than this, of 255, pass: nothing can be said against them.
_FINEST_PX, _COARSEST_PX, _LEAST_DETAIL = 1.0, 3.0, 3.0
_CACHED_TEST_IMAGES = 256  # 110 KB each


class DetailCheck:
    """Compares details of a training image and a test image; safe to use from many threads."""

    def __init__(self, train: ShardedDataset, held_out: HeldOutImages) -> None:
        """Read nothing yet."""
        self._held_out = held_out
        self._train = _reader(train)
        self._tests = [_reader(dataset) for dataset in held_out.datasets]
        self._test_image = lru_cache(maxsize=_CACHED_TEST_IMAGES)(self._read_test_image)

    def passes(
        self, train_row: int, image: int, *, mirrored: bool, placement: Floats, distance: float
    ) -> bool:
        """Whether the details do not speak against a copy.

        Args:
            train_row: the training image.
            image: number of the test image.
            mirrored: compare with its mirror image.
            placement: where it lies, (4,), as `pixel_distances` found it.
            distance: what `pixel_distances` measured.
        """
        if distance <= _SURE_BELOW:
            return True
        test = self._test_image(image)
        if test is None:
            return True
        train = _small(self._train, train_row)
        if train is None:
            return True
        return detail_distance(train, test[..., ::-1] if mirrored else test, placement) <= (
            _MAX_DISTANCE
        )

    def close(self) -> None:
        """Close the shards."""
        for reader in (self._train, *self._tests):
            reader.close()

    def _read_test_image(self, image: int) -> Floats | None:
        number = int(self._held_out.set_number[image])
        return _small(self._tests[number], int(self._held_out.row[image]))


def detail_distance(train: Floats, test: Floats, placement: Floats) -> float:
    """1 - correlation of the details of two images (3, 96, 96); 0 where there are too few.

    Args:
        train: the training image.
        test: the test image, mirrored already where a mirrored copy is sought.
        placement: where it lies, (4,); see `views.placements`.
    """
    rows, _, rows_inside = sampling(placement[:1], placement[1:2], len(train[0]))
    columns, _, columns_inside = sampling(placement[2:3], placement[3:], len(train[0]))
    inside = rows_inside[0][:, None] & columns_inside[0][None, :]
    seen = rows[0] @ test @ columns[0].T
    first, second = (_details(image)[:, inside] for image in (train, seen))
    strengths = [float(np.sqrt((details**2).mean())) for details in (first, second)]
    if min(strengths) < _LEAST_DETAIL:
        return 0.0
    return 1 - float((first * second).mean()) / (strengths[0] * strengths[1])


def _details(image: Floats) -> Floats:
    fine = gaussian_filter(image, (0, _FINEST_PX, _FINEST_PX))
    return np.asarray(fine - gaussian_filter(fine, (0, _COARSEST_PX, _COARSEST_PX)))


def _small(reader: ImageReader, row: int) -> Floats | None:
    """The image as float32 (3, 96, 96); None if it is smaller than that, or unreadable."""
    image = reader.image(row)
    if image is None or min(image.shape[1:]) < _SIDE_PX:
        return None
    return thumbnail(image, _SIDE_PX).astype(np.float32)


def _reader(dataset: ShardedDataset) -> ImageReader:
    return ImageReader(
        dataset,
        max_pixels=LoaderConfig().max_image_pixels,
        broken=BrokenList(),
        max_broken_fraction=1.0,
    )
