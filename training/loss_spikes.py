"""When a loss is far above what the losses before it would let one expect."""

from __future__ import annotations

from collections import deque
from statistics import median

_NORMAL = 1.4826  # median absolute deviation of a normal distribution, in standard deviations
_MIN_LOSSES = 8


class SpikeDetector:
    """Scores each loss against a window of those before it.

    The score is a robust z-score: the distance from the window's median in units of 1.4826 times
    its median absolute deviation, so that one earlier spike does not hide the next.
    """

    def __init__(self, window: int) -> None:
        """Remember the last `window` losses."""
        self._losses: deque[float] = deque(maxlen=window)

    def remember(self, loss: float) -> None:
        """Let a loss be one of those that later ones are compared with."""
        self._losses.append(loss)

    def score(self, loss: float) -> float:
        """How far a loss lies above those remembered; 0 until there are 8 or the window is full.

        A falling loss gives a negative score. Where the window does not vary, the score is that of
        a deviation of a millionth of its median.
        """
        if len(self._losses) < min(_MIN_LOSSES, self._losses.maxlen or _MIN_LOSSES):
            return 0.0
        middle = median(self._losses)
        deviation = _NORMAL * median(abs(other - middle) for other in self._losses)
        return (loss - middle) / max(deviation, abs(middle) * 1e-6, 1e-12)
