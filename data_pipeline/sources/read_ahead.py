"""Calls a function for one item after the other; several at a time where each call waits long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from data_pipeline.sources.source import PendingImage

# Reads in flight per process. A request to an object store takes 20 to 50 ms whatever its size.
_THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """Results of `read` in the order of `items`; without threads of its own if `num_threads` is 1.

    At most twice as many results as threads are held, so memory does not grow with the items.
    """
    if num_threads == 1:
        yield from map(read, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for item in items:
            waiting.append(threads.submit(read, item))
            if len(waiting) >= 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_files(images: Sequence[PendingImage]) -> Iterator[bytes | OSError]:
    """The bytes of each image in turn, or the error that reading it raised."""
    is_remote = any(getattr(image, "is_remote", False) for image in images[:1])
    return read_ahead(_read, images, _THREADS if is_remote else 1)


def _read(image: PendingImage) -> bytes | OSError:
    try:
        return image.read()
    except OSError as error:
        return error
