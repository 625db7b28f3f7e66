"""Training images against the test images: exact copies by digest, near ones by hash and pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from data_pipeline.dataset import ShardedDataset
from data_pipeline.leaks.detail_check import DetailCheck
from data_pipeline.leaks.held_out import HeldOutImages
from data_pipeline.leaks.perceptual_hash import hash_codes
from data_pipeline.leaks.pixel_check import pixel_distances
from data_pipeline.leaks.scan import Chunk, scan_dataset

EXACT, NEAR, MIRRORED = "exact", "near", "mirrored"
KINDS = (EXACT, NEAR, MIRRORED)
_CHECKED_AT_ONCE = 4096


class Match(NamedTuple):
    """A training image, by row, that shows a test image, by its number in `HeldOutImages`."""

    train_row: int
    image: int
    kind: str
    distance: float


@dataclass(frozen=True)
class Searched:
    """What came of one chunk of training images; matches are ordered by row, then by distance."""

    matches: list[Match]
    num_images: int
    num_broken: int
    num_plain: int
    first_broken: str | None


def find_leaks(
    train: ShardedDataset, held_out: HeldOutImages, *, max_distance: float, threads: int
) -> Iterator[Searched]:
    """Read the training set once and give what was found, chunk by chunk, in the order of rows.

    Args:
        train: the training images.
        held_out: the test images.
        max_distance: near and mirrored copies differ by at most this; see `pixel_distances`.
        threads: chunks worked on at a time.
    """
    check = DetailCheck(train, held_out)
    try:
        yield from scan_dataset(
            train,
            partial(_search, held_out, check, max_distance),
            threads=threads,
            digest_where=held_out.markers.__contains__,
        )
    finally:
        check.close()


def _search(
    held_out: HeldOutImages, check: DetailCheck, max_distance: float, chunk: Chunk
) -> Searched:
    plain = chunk.plain()
    best: dict[tuple[int, int], Match] = {}
    near = _near(held_out, check, max_distance, chunk.take(~plain))
    # Exact copies come first and are never replaced: they are their own nearest.
    for match in [*_exact(held_out, chunk), *near]:
        pair = (match.train_row, match.image)
        if pair not in best or match.distance < best[pair].distance:
            best[pair] = match
    matches = sorted(
        best.values(), key=lambda match: (match.train_row, match.distance, match.image)
    )
    num_images = len(chunk.rows) + chunk.num_broken
    return Searched(matches, num_images, chunk.num_broken, int(plain.sum()), chunk.first_broken)


def _exact(held_out: HeldOutImages, chunk: Chunk) -> Iterator[Match]:
    for row, digest in zip(chunk.rows.tolist(), chunk.digests, strict=True):
        if digest is not None:
            for image in held_out.by_digest.get(digest, ()):
                yield Match(row, image, EXACT, 0.0)


def _near(
    held_out: HeldOutImages, check: DetailCheck, max_distance: float, chunk: Chunk
) -> Iterator[Match]:
    found = held_out.candidates(hash_codes(chunk.thumbnails, num_views=1)[:, 0])
    for start in range(0, len(found.query), _CHECKED_AT_ONCE):
        part = slice(start, start + _CHECKED_AT_ONCE)
        query, images, mirrored = found.query[part], found.image[part], found.mirrored[part]
        test = held_out.thumbnails[images]
        test[mirrored] = test[mirrored][..., ::-1]
        distances, placements = pixel_distances(
            chunk.thumbnails[query], test, found.placement[part]
        )
        for place in np.flatnonzero(distances <= max_distance).tolist():
            row, image = int(chunk.rows[query[place]]), int(images[place])
            is_mirrored, distance = bool(mirrored[place]), float(distances[place])
            if check.passes(
                row, image, mirrored=is_mirrored, placement=placements[place], distance=distance
            ):
                yield Match(row, image, MIRRORED if is_mirrored else NEAR, distance)
