"""A second labelling of an evaluation set: for each image all the classes that count as right.

So is `real.json`, the "Reassessed Labels" of ImageNet-1k's validation set: a list for every image,
in the order of the files' names; an empty list means that the image is not scored.

Source: "Are we done with ImageNet?" (Beyer et al. 2020, arXiv:2006.07159).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.dataset import ShardedDataset

if TYPE_CHECKING:
    import torch

    from data_pipeline.batch import Batch

_PADDING = -1
_LEAST_AGREEMENT = 0.5


class RealLabels:
    """The classes that count as right, by row of a dataset."""

    def __init__(self, accepted: NDArray[np.int32]) -> None:
        """Take class numbers of shape (num_images, most classes of an image), padded with -1."""
        self.accepted = accepted

    @property
    def num_images(self) -> int:
        """Images that have such a class, and so are scored."""
        return int((self.accepted >= 0).any(axis=1).sum())

    def beside(self, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """An evaluation batch's labels (B,) int64 with what counts as right, (B, 1 + K) int64.

        `rows` (B,) are those of the images on the CPU; padding, row -1, gets -1 throughout.
        """
        import torch

        numbers = rows.numpy()
        accepted = np.where(numbers[:, None] < 0, _PADDING, self.accepted[numbers])
        columns = torch.from_numpy(accepted.astype(np.int64)).to(labels.device)
        return torch.cat([labels[:, None], columns], dim=1)


def batches_with_real_labels(
    loader: Iterable[Batch], device: torch.device, real_labels: RealLabels | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of an evaluation's batches on a device, the second ones beside the first.

    Without `real_labels`, the labels are as the batch has them.
    """
    for batch in loader:
        images, labels = batch.to(device)
        yield images, labels if real_labels is None else real_labels.beside(labels, batch.rows)


def read_real_labels(path: Path, dataset: ShardedDataset, option: str) -> RealLabels:
    """Read the list for a dataset; list i is about image i in the source's own order.

    `option` is what named the file, for messages.

    Raises:
        RefusedInput: The file is no list of lists of class numbers, or does not fit the dataset:
            other images, another order, some of the classes only, label sets.
    """
    told = f"{option} = {path}"
    if dataset.is_multi_label:
        raise RefusedInput(f"{told}: the images of {dataset.folder} have label sets already")
    if dataset.filter_digest:
        raise RefusedInput(
            f"{told} numbers all classes of {dataset.folder}; leave out data.classes and "
            "data.label_map"
        )
    lists = _read_lists(path, told)
    last = int(dataset.source_row.max())
    if last >= len(lists):
        raise RefusedInput(
            f"{told} is about {len(lists)} images, but {dataset.folder} has an image number "
            f"{last + 1}; give the list that belongs to this set"
        )
    _refuse_unknown_classes(lists, dataset, told)
    real = RealLabels(_padded([lists[row] for row in dataset.source_row.tolist()]))
    _refuse_disagreement(real, dataset, told)
    return real


def _read_lists(path: Path, told: str) -> list[list[int]]:
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefusedInput(f"{told} cannot be read as JSON: {error}") from error
    if not isinstance(lists, list):
        raise RefusedInput(f"{told} holds no list; give real.json, a list of classes an image")
    for number, classes in enumerate(lists):
        if not _is_class_list(classes):
            raise RefusedInput(
                f"{told}: entry {number} is {classes!r:.60}; expected a list of class numbers"
            )
    return lists


def _is_class_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refuse_unknown_classes(lists: list[list[int]], dataset: ShardedDataset, told: str) -> None:
    largest = max((number for classes in lists for number in classes), default=-1)
    if largest >= dataset.num_classes:
        raise RefusedInput(
            f"{told} has class {largest}, but {dataset.folder} has {dataset.num_classes} classes"
        )
    if largest < 0:
        raise RefusedInput(f"{told} has no class for any image")


def _padded(lists: list[list[int]]) -> NDArray[np.int32]:
    longest = max(1, max(map(len, lists)))
    accepted = np.full((len(lists), longest), _PADDING, dtype=np.int32)
    for row, classes in enumerate(lists):
        accepted[row, : len(classes)] = classes
    return accepted


def _refuse_disagreement(real: RealLabels, dataset: ShardedDataset, told: str) -> None:
    """A list in another order would still give a score, and a wrong one."""
    scored = (real.accepted >= 0).any(axis=1)
    if not scored.any():
        raise RefusedInput(f"{told} has no class for any image of {dataset.folder}")
    agrees = (real.accepted == dataset.label[:, None]).any(axis=1)[scored].mean()
    if agrees < _LEAST_AGREEMENT:
        raise RefusedInput(
            f"{told} has the image's own class for {agrees:.0%} of the images of {dataset.folder} "
            "only: their order or the numbering of the classes differs. ImageNet's list goes with "
            "shards that `data_pipeline.build --source imagenet-1k --split val` wrote"
        )
