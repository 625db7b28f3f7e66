"""How far a long read is: a bar on a terminal, a line a minute in the log of a batch job."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class ReadProgress:
    """Images read, how many a second, and the time that is left; on standard error.

    Use it in a `with` block.
    """

    def __init__(self, title: str, num_images: int, *, shown: bool = True) -> None:
        """Begin at 0 of `num_images`; nothing is written unless `shown`."""
        self._title, self._num_images, self._num_read = title, num_images, 0
        on_terminal = sys.stderr.isatty()
        self._in_lines = shown and not on_terminal
        self._bar = tqdm(
            total=num_images, desc=title, unit=" images", disable=not (shown and on_terminal)
        )
        self._started = self._told = time.monotonic()

    def __enter__(self) -> ReadProgress:
        """Give the progress itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar where it is."""
        self._bar.close()

    def add(self, num_images: int, note: str = "") -> None:
        """Count images that were read; `note` stands behind the numbers."""
        self._num_read += num_images
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(num_images)
        now = time.monotonic()
        if self._in_lines and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self._write_line(now - self._started, note)

    def _write_line(self, seconds: float, note: str) -> None:
        rate = self._num_read / seconds
        left = tqdm.format_interval((self._num_images - self._num_read) / rate) if rate else "?"
        line = (
            f"{self._title}: {self._num_read:,} of {self._num_images:,} images, "
            f"{rate:,.0f} images/s, {left} left"
        )
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)  # noqa: T201
