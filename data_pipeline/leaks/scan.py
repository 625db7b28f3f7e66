"""Reads a dataset once, in threads, a chunk of rows at a time, down to what leaks are found by."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from configs.data_groups import LoaderConfig
from data_pipeline.broken import BrokenList, BrokenRecord
from data_pipeline.dataset import ShardedDataset
from data_pipeline.image_reader import ImageReader
from data_pipeline.leaks.perceptual_hash import LUMA
from data_pipeline.leaks.views import THUMBNAIL_PX
from data_pipeline.location import redacted

_CHUNK_IMAGES = 256
_CHUNKS_AHEAD_PER_THREAD = 2
# Standard deviation of the brightness, of 255, below which compression noise decides the hash.
_PLAIN_BELOW = 2.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Chunk:
    """The readable images of consecutive rows.

    Attributes:
        rows: int64 (images,), ascending.
        thumbnails: uint8 (images, 3, 32, 32).
        markers: for each image a digest of its thumbnail and size; equal images have equal ones.
        digests: for each image the digest of its pixels, where it was asked for.
        num_broken: rows that could not be read or decoded.
        first_broken: which of them is the first, and why; None if there is none.
    """

    rows: NDArray[np.int64]
    thumbnails: NDArray[np.uint8]
    markers: tuple[bytes, ...]
    digests: tuple[bytes | None, ...]
    num_broken: int
    first_broken: str | None = None

    def plain(self) -> NDArray[np.bool_]:
        """Which images show next to nothing, so that only their exact pixels tell them apart."""
        grey = np.einsum("ncyx,c->nyx", self.thumbnails.astype(np.float32), LUMA)
        return np.asarray(grey.std(axis=(1, 2)) < _PLAIN_BELOW)

    def take(self, chosen: NDArray[np.bool_]) -> Chunk:
        """Some of the readable images."""
        places = np.flatnonzero(chosen).tolist()
        return Chunk(
            rows=self.rows[chosen],
            thumbnails=self.thumbnails[chosen],
            markers=tuple(self.markers[place] for place in places),
            digests=tuple(self.digests[place] for place in places),
            num_broken=0,
        )


def scan_dataset(
    dataset: ShardedDataset,
    work: Callable[[Chunk], Result],
    *,
    threads: int,
    digest_where: Callable[[bytes], bool],
) -> Iterator[Result]:
    """Results of `work` on every chunk, in the order of the rows; `work` runs in the threads.

    Args:
        dataset: the images.
        work: what to do with a chunk; it may run in several threads at once.
        threads: chunks worked on at a time.
        digest_where: by an image's marker, whether its pixels are digested (which costs as much
            as decoding it does).
    """
    reader = ImageReader(
        dataset,
        max_pixels=LoaderConfig().max_image_pixels,
        broken=BrokenList(),
        max_broken_fraction=1.0,
    )

    def work_on(first: int) -> Result:
        rows = range(first, min(first + _CHUNK_IMAGES, dataset.num_images))
        return work(_read_chunk(reader, rows, digest_where))

    waiting: deque[Future[Result]] = deque()
    with _one_core_each(threads) as executor:
        try:
            for first in range(0, dataset.num_images, _CHUNK_IMAGES):
                waiting.append(executor.submit(work_on, first))
                if len(waiting) > _CHUNKS_AHEAD_PER_THREAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
            reader.close()


def _read_chunk(reader: ImageReader, rows: range, digest_where: Callable[[bytes], bool]) -> Chunk:
    thumbnails = np.empty((len(rows), 3, THUMBNAIL_PX, THUMBNAIL_PX), dtype=np.uint8)
    readable: list[int] = []
    markers: list[bytes] = []
    digests: list[bytes | None] = []
    first_broken = None
    for row in rows:
        image = reader.image(row)
        if image is None:
            first_broken = first_broken or _described(reader.record(row))
            continue
        small = thumbnail(image)
        marker = _digest(small, image.shape)
        thumbnails[len(readable)] = small
        readable.append(row)
        markers.append(marker)
        digests.append(pixel_digest(image) if digest_where(marker) else None)
    return Chunk(
        rows=np.array(readable, dtype=np.int64),
        thumbnails=thumbnails[: len(readable)],
        markers=tuple(markers),
        digests=tuple(digests),
        num_broken=len(rows) - len(readable),
        first_broken=first_broken,
    )


def _described(broken: BrokenRecord) -> str:
    return redacted(f"image {broken.key} of shard {broken.shard}: {broken.reason}")


def thumbnail(image: torch.Tensor, side_px: int = THUMBNAIL_PX) -> NDArray[np.uint8]:
    """The image (3, H, W), whatever its shape, as uint8 (3, side, side)."""
    size = (side_px, side_px)
    if image.shape[1:] != size:
        image = interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    return image.contiguous().numpy()


def pixel_digest(image: torch.Tensor) -> bytes:
    """16 bytes that two images (3, H, W) share if they have the same size and pixels."""
    return _digest(image.contiguous().numpy(), image.shape)


def _digest(pixels: NDArray[np.uint8], shape: torch.Size) -> bytes:
    digest = hashlib.blake2b(repr(tuple(shape)).encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()


@contextmanager
def _one_core_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which an operation of PyTorch or faiss uses one core."""
    callers_number = torch.get_num_threads()
    # A thread's first use of PyTorch takes the default, which is set here.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, "leaks", initializer=_use_one_core) as executor:
            yield executor
    finally:
        torch.set_num_threads(callers_number)


def _use_one_core() -> None:
    import faiss

    torch.get_num_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
