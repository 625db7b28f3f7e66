"""The second check: do two thumbnails show the same pixels once one is laid over the other?

A test thumbnail is scaled and shifted until it fits the training thumbnail best, beginning with the
view that the hash found; what counts is the correlation of the pixels that both then show.
Correlation does not change with brightness or contrast.

Source: the forward additive variant of Baker and Matthews, "Lucas-Kanade 20 Years On", 2004, with
gain and offset projected out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.leaks.views import THUMBNAIL_PX, Floats

_STEPS = 6
# Pairs below this where the hash placed them are not aligned any further. Copies were never seen
# below 0.75, nine in ten of the unrelated pairs that a hash brings together lie below 0.45.
_WORTH_ALIGNING = 0.5
# Within these, a copy may be cropped by up to some 12 % of a side, on either side.
_SCALES, _LARGEST_SHIFT_PX = (0.85, 1.18), 4.0
_LARGEST_SCALE_STEP, _LARGEST_SHIFT_STEP_PX = 0.06, 1.5
_SMALLEST_OVERLAP = 0.7
_PAIRS_AT_ONCE = 128  # about 25 MB
_FROM_MIDDLE = (np.arange(THUMBNAIL_PX) - (THUMBNAIL_PX - 1) / 2).astype(np.float32)

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


def pixel_distances(train: Bytes, test: Bytes, placements: Floats) -> tuple[Floats, Floats]:
    """1 - correlation of pairs of thumbnails, laid over each other as well as possible.

    Args:
        train: uint8 (pairs, 3, 32, 32).
        test: uint8 (pairs, 3, 32, 32), mirrored already where a mirrored copy is sought.
        placements: where alignment starts, (pairs, 4); see `views.placements`.

    Returns:
        Distances, float32 (pairs,) in [0, 2]: 0 for equal pixels, about 1 for unrelated ones; and
        the placements (pairs, 4) where they were measured.
    """
    distances, best = np.empty(len(train), dtype=np.float32), placements.copy()
    for start in range(0, len(train), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        correlations, best[part] = _best_fit(
            _smooth(train[part]), _smooth(test[part]), placements[part]
        )
        distances[part] = 1 - correlations
    return np.clip(distances, 0.0, 2.0), best


def _best_fit(train: Floats, test: Floats, start: Floats) -> tuple[Floats, Floats]:
    """Correlation at the best placement found, (pairs,), and that placement, (pairs, 4)."""
    seen, _, inside = _lay(test, start)
    best, best_placement = _correlation(train, seen, inside), start.copy()
    worth = np.flatnonzero(best > _WORTH_ALIGNING)
    train, test, placement = train[worth], test[worth], start[worth]
    for _ in range(_STEPS if worth.size else 0):
        placement = _better_placement(train, test, placement)
        seen, _, inside = _lay(test, placement)
        correlation = _correlation(train, seen, inside)
        better = correlation > best[worth]
        best[worth[better]] = correlation[better]
        best_placement[worth[better]] = placement[better]
    return best, best_placement


def _better_placement(train: Floats, test: Floats, placement: Floats) -> Floats:
    """One Gauss-Newton step on the difference of the normalised thumbnails."""
    seen, (slope_y, slope_x), inside = _lay(test, placement)
    wanted, _ = _normalised(train, inside)
    now, length = _normalised(seen, inside)
    offset_y, offset_x = _FROM_MIDDLE[:, None], _FROM_MIDDLE[None, :]
    directions = (slope_y * offset_y, slope_y, slope_x * offset_x, slope_x)
    columns = [_centred(direction, inside) / length for direction in directions]
    jacobian = np.stack(columns, axis=1).reshape(len(train), 4, -1)
    flat_now = now.reshape(len(train), 1, -1)
    # What only makes the image stronger or weaker is the gain, which is free.
    jacobian -= (jacobian * flat_now).sum(-1, keepdims=True) * flat_now
    residual = (wanted - now).reshape(len(train), -1, 1)
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    # An image of stripes has no place along them; this keeps it where it is.
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-12
    step = np.linalg.solve(normal + damping * np.eye(4, dtype=np.float32), jacobian @ residual)
    return _within_bounds(placement, step[..., 0])


def _within_bounds(placement: Floats, step: Floats) -> Floats:
    scale_step = np.clip(step[:, ::2], -_LARGEST_SCALE_STEP, _LARGEST_SCALE_STEP)
    shift_step = np.clip(step[:, 1::2], -_LARGEST_SHIFT_STEP_PX, _LARGEST_SHIFT_STEP_PX)
    moved = np.empty_like(placement)
    moved[:, ::2] = np.clip(placement[:, ::2] + scale_step, *_SCALES)
    shifts = placement[:, 1::2] + shift_step
    moved[:, 1::2] = np.clip(shifts, -_LARGEST_SHIFT_PX, _LARGEST_SHIFT_PX)
    return moved


def _lay(test: Floats, placement: Floats) -> tuple[Floats, tuple[Floats, Floats], Floats]:
    """The test thumbnails as their placement shows them.

    Returns:
        Pixels (pairs, 3, 32, 32), their slopes down and to the right, and 1 where the placement
        lies inside the thumbnail, else 0: (pairs, 1, 32, 32).
    """
    rows, row_slopes, row_inside = sampling(placement[:, 0], placement[:, 1])
    columns, column_slopes, column_inside = sampling(placement[:, 2], placement[:, 3])
    rows, row_slopes = rows[:, None], row_slopes[:, None]
    columns = columns.transpose(0, 2, 1)[:, None]
    column_slopes = column_slopes.transpose(0, 2, 1)[:, None]
    across = test @ columns
    slopes = (row_slopes @ across, rows @ (test @ column_slopes))
    inside = (row_inside[:, :, None] & column_inside[:, None, :])[:, None]
    return rows @ across, slopes, inside.astype(np.float32)


def sampling(
    scale: Floats, shift: Floats, side: int = THUMBNAIL_PX
) -> tuple[Floats, Floats, Bools]:
    """Bilinear sampling along one side: matrices (pairs, side, side), the slope's, what fits.

    Scale and shift are those of a placement, in pixels of the thumbnail.
    """
    from_middle = np.arange(side) - (side - 1) / 2
    place = scale[:, None] * from_middle + shift[:, None] * (side / THUMBNAIL_PX) + (side - 1) / 2
    inside = (place >= -0.5) & (place <= side - 0.5)
    place = np.clip(place, 0, side - 1)
    left = np.minimum(place.astype(np.int64), side - 2)
    share = (place - left).astype(np.float32)
    weights = np.zeros((len(scale), side, side), dtype=np.float32)
    slopes = np.zeros_like(weights)
    pair, pixel = np.arange(len(scale))[:, None], np.arange(side)
    weights[pair, pixel, left], weights[pair, pixel, left + 1] = 1 - share, share
    slopes[pair, pixel, left], slopes[pair, pixel, left + 1] = -1, 1
    return weights, slopes, inside


def _correlation(train: Floats, seen: Floats, inside: Floats) -> Floats:
    """Correlation over the common part, -1 where that is too small to tell: (pairs,)."""
    product = _normalised(train, inside)[0] * _normalised(seen, inside)[0]
    enough = inside.mean(axis=(1, 2, 3)) >= _SMALLEST_OVERLAP
    return np.where(enough, product.sum(axis=(1, 2, 3)), -1).astype(np.float32)


def _normalised(image: Floats, inside: Floats) -> tuple[Floats, Floats]:
    """Centred, of length 1 over all channels; and the length before, (pairs, 1, 1, 1)."""
    centred = _centred(image, inside)
    length = np.sqrt((centred * centred).sum(axis=(1, 2, 3), keepdims=True)) + np.float32(1e-6)
    return centred / length, length


def _centred(image: Floats, inside: Floats) -> Floats:
    """Without each channel's mean over the common part, and 0 outside of it."""
    masked = image * inside
    count = np.maximum(inside.sum(axis=(2, 3), keepdims=True), 1)
    return masked - inside * (masked.sum(axis=(2, 3), keepdims=True) / count)


def _smooth(thumbnails: Bytes) -> Floats:
    """Blurred by [1, 2, 1] / 4 both ways: compression and resizing differ in the finest detail."""
    image = np.pad(thumbnails.astype(np.float32), [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge")
    rows: Floats = image[:, :, :-2] + 2 * image[:, :, 1:-1] + image[:, :, 2:]
    columns: Floats = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return columns / np.float32(16)
