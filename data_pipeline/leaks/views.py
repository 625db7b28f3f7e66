"""How one image may lie in another: the views of a test image that its copies are sought by.

Lengths are pixels of the 32 x 32 thumbnail that stands for an image, whatever its own size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THUMBNAIL_PX = 32
# A crop of 5 % of each side takes 1.6 px off, and 2 px where a 32 px image is cut at whole pixels.
_CROP_PX = 2.0

Floats = NDArray[np.float32]


def view_spans() -> Floats:
    """The part of the thumbnail that each view shows: (views, 2, 2), rows then columns, [from, to).

    First the whole; then what a copy would show that was cropped in the middle or towards a corner;
    then, reaching beyond the edges, what it would show if the test image were the cropped one.
    """
    side, crop = float(THUMBNAIL_PX), _CROP_PX
    grow = crop * side / (side - crop)
    inner = [(0.0, side - crop), (crop / 2, side - crop / 2), (crop, side)]
    outer = [(-grow, side), (-grow / 2, side + grow / 2), (0.0, side + grow)]
    spans = [((0.0, side), (0.0, side))]
    for start, middle, end in (inner, outer):
        spans.append((middle, middle))
        spans += [(rows, columns) for rows in (start, end) for columns in (start, end)]
    return np.array(spans, dtype=np.float32)


def resampling(span: Floats) -> Floats:
    """Matrix (32, 32) that resamples 32 pixels to what `span` shows; mirrored beyond the edges."""
    side = THUMBNAIL_PX
    start, end = (float(edge) for edge in span)
    place = start + (np.arange(side) + 0.5) * (end - start) / side - 0.5
    left = np.floor(place).astype(np.int64)
    share = place - left
    matrix = np.zeros((side, side), dtype=np.float32)
    for column, weight in ((left, 1 - share), (left + 1, share)):
        inside = np.where(column < 0, -1 - column, column)
        inside = np.where(inside >= side, 2 * side - 1 - inside, inside)
        np.add.at(matrix, (np.arange(side), inside), weight)
    return matrix


def placements(spans: Floats) -> Floats:
    """Spans (n, 2, 2) as scale and shift about the middle: (n, 4), y scale, y shift, x scale, x."""
    side = THUMBNAIL_PX
    scale = (spans[..., 1] - spans[..., 0]) / side
    shift = (spans[..., 0] + spans[..., 1] - side) / 2
    return np.stack([scale[:, 0], shift[:, 0], scale[:, 1], shift[:, 1]], axis=1)
