"""Reads image files for the writer, in order; several at a time where each read waits long."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from data_pipeline.sources.source import PendingImage

# Reads in flight per process. A request to an object store takes 20 to 50 ms whatever its size.
_THREADS = 16


def read_files(images: Sequence[PendingImage]) -> Iterator[bytes | OSError]:
    """The bytes of each image in turn, or the error that reading it raised.

    At most twice as many files as threads are held, so memory does not grow with the sequence.
    """
    if not any(getattr(image, "is_remote", False) for image in images[:1]):
        yield from map(_read, images)
        return
    waiting: deque[Future[bytes | OSError]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for image in images:
            waiting.append(threads.submit(_read, image))
            if len(waiting) >= 2 * _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(image: PendingImage) -> bytes | OSError:
    try:
        return image.read()
    except OSError as error:
        return error
