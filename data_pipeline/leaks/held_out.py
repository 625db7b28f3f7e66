"""The test images, in memory: digests, thumbnails, and an index of their hashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import ShardedDataset
from data_pipeline.leaks.perceptual_hash import NUM_VIEWS, HashIndex, hash_codes
from data_pipeline.leaks.scan import Chunk, scan_dataset
from data_pipeline.leaks.views import Floats, placements, view_spans

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Pairs that the hash brings together; arrays of one length.

    Attributes:
        query: number of the training image among those asked for.
        image: number of the test image.
        mirrored: whether it is the test image's mirror image that is near.
        placement: where it lies, (pairs, 4); see `views.placements`.
    """

    query: Integers
    image: Integers
    mirrored: NDArray[np.bool_]
    placement: Floats


@dataclass
class HeldOutImages:
    """Images of all test sets, numbered through; about 8 KB each.

    Attributes:
        datasets: the test sets.
        set_number: for each image, which of them it belongs to.
        row: for each image, its row there.
        thumbnails: uint8 (images, 3, 32, 32).
        by_digest: images by the digest of their pixels.
        markers: of all images; see `Chunk`.
        num_broken, num_plain, first_broken: for each test set; see `Chunk`.
    """

    datasets: Sequence[ShardedDataset]
    set_number: NDArray[np.int32]
    row: Integers
    thumbnails: NDArray[np.uint8]
    by_digest: dict[bytes, list[int]]
    markers: frozenset[bytes]
    num_broken: list[int]
    num_plain: list[int]
    first_broken: list[str | None]
    _index: HashIndex = field(repr=False)
    # An entry of the index is a view of one of these images, mirrored or not.
    _indexed: Integers = field(repr=False)

    def candidates(self, codes: NDArray[np.uint8]) -> Candidates:
        """Test images near the codes (queries, 8), each once as it is and once mirrored."""
        query, entry, bits = self._index.search(codes)
        place, view = np.divmod(entry, NUM_VIEWS)
        number, mirrored = np.divmod(place, 2)
        image = self._indexed[number]
        order = np.lexsort((view, bits, mirrored, image, query))
        query, image, mirrored, view = query[order], image[order], mirrored[order], view[order]
        first = np.ones(len(query), dtype=bool)
        first[1:] = (np.diff(query) != 0) | (np.diff(image) != 0) | (np.diff(mirrored) != 0)
        return Candidates(
            query=query[first],
            image=image[first],
            mirrored=mirrored[first].astype(bool),
            placement=placements(view_spans()[view[first]]),
        )


def read_held_out(
    datasets: Sequence[ShardedDataset], *, threads: int, on_images: Callable[[int], object]
) -> HeldOutImages:
    """Read the test sets; `on_images` is told of progress, in images."""
    index, indexed = HashIndex(), []
    by_digest: defaultdict[bytes, list[int]] = defaultdict(list)
    markers: set[bytes] = set()
    set_numbers, rows, thumbnails = [], [], []
    num_broken, num_plain = [0] * len(datasets), [0] * len(datasets)
    first_broken: list[str | None] = [None] * len(datasets)
    num_images = 0
    for set_number, dataset in enumerate(datasets):
        for chunk, plain, codes in scan_dataset(
            dataset, _with_codes, threads=threads, digest_where=lambda _: True
        ):
            numbers = np.arange(num_images, num_images + len(chunk.rows))
            num_images += len(chunk.rows)
            for number, digest in zip(numbers.tolist(), chunk.digests, strict=True):
                assert digest is not None, "every test image's pixels are digested"
                by_digest[digest].append(number)
            markers.update(chunk.markers)
            index.add(codes)
            indexed.append(numbers[~plain])
            set_numbers.append(np.full(len(numbers), set_number, dtype=np.int32))
            rows.append(chunk.rows)
            thumbnails.append(chunk.thumbnails)
            num_broken[set_number] += chunk.num_broken
            num_plain[set_number] += int(plain.sum())
            first_broken[set_number] = first_broken[set_number] or chunk.first_broken
            on_images(len(chunk.rows) + chunk.num_broken)
    return HeldOutImages(
        datasets=datasets,
        set_number=np.concatenate(set_numbers),
        row=np.concatenate(rows),
        thumbnails=np.concatenate(thumbnails),
        by_digest=dict(by_digest),
        markers=frozenset(markers),
        num_broken=num_broken,
        num_plain=num_plain,
        first_broken=first_broken,
        _index=index,
        _indexed=np.concatenate(indexed),
    )


def _with_codes(chunk: Chunk) -> tuple[Chunk, NDArray[np.bool_], NDArray[np.uint8]]:
    """A chunk, which of its images are plain, and the codes (n, 8) of all views of the others."""
    plain = chunk.plain()
    upright = chunk.thumbnails[~plain]
    codes = np.stack([hash_codes(upright), hash_codes(upright[..., ::-1])], axis=1)
    return chunk, plain, codes.reshape(-1, codes.shape[-1])
