"""CIFAR-10 and CIFAR-100 from the "python version" of their archives.

The batches are pickles. They are read by an unpickler that knows numpy's arrays and nothing else,
so a forged batch cannot run code.

Source: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009).
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.sources.source import ArraySource, find_layout

_SIDE_PX = 32


@dataclass(frozen=True)
class _Layout:
    """Names of files and fields of one of the two datasets."""

    name: str
    folder: str
    archive: str
    batches: dict[str, tuple[str, ...]]
    meta_file: str
    names_field: str
    labels_field: str


_CIFAR10 = _Layout(
    name="cifar10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    batches={
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    },
    meta_file="batches.meta",
    names_field="label_names",
    labels_field="labels",
)
_CIFAR100 = _Layout(
    name="cifar100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    batches={"train": ("train",), "test": ("test",)},
    meta_file="meta",
    names_field="fine_label_names",
    labels_field="fine_labels",
)


def read_cifar10(input_folder: Path, split: str) -> ArraySource:
    """Read `train` (batches 1 to 5 in turn) or `test` of CIFAR-10.

    Raises:
        RefusedInput: A batch is missing, is not a CIFAR batch, or wants to run code.
    """
    return _read(_CIFAR10, input_folder, split)


def read_cifar100(input_folder: Path, split: str) -> ArraySource:
    """Read `train` or `test` of CIFAR-100 with its 100 fine labels; raises like `read_cifar10`."""
    return _read(_CIFAR100, input_folder, split)


def _read(layout: _Layout, input_folder: Path, split: str) -> ArraySource:
    get = f"give the folder that {layout.archive} unpacks to"
    names = layout.batches[split]
    root = find_layout(input_folder, layout.folder, (*names, layout.meta_file), get)
    meta = _unpickle(root / layout.meta_file)
    classes = tuple(str(name) for name in _field(root / layout.meta_file, meta, layout.names_field))
    parts = [_read_batch(root / name, layout.labels_field, len(classes)) for name in names]
    return ArraySource(
        name=layout.name,
        split=split,
        classes=classes,
        labels=np.concatenate([labels for labels, _ in parts]),
        pixels=np.concatenate([pixels for _, pixels in parts]),
    )


def _read_batch(
    path: Path, labels_field: str, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Labels (N,) and pixels (N, 32, 32, 3) of one batch file."""
    batch = _unpickle(path)
    labels = np.asarray(_field(path, batch, labels_field), dtype=np.int64)
    rows = _field(path, batch, "data")
    expected = (len(labels), 3 * _SIDE_PX * _SIDE_PX)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != expected:
        raise RefusedInput(f"{path}: 'data' must be a uint8 array of shape {expected}")
    if labels.size == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise RefusedInput(f"{path}: '{labels_field}' must be numbers 0..{num_classes - 1}")
    planes = rows.reshape(-1, 3, _SIDE_PX, _SIDE_PX)
    return labels, np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _field(path: Path, batch: dict[str, Any], name: str) -> Any:
    if name not in batch:
        raise RefusedInput(f"{path} has no '{name}'; it is not the batch file of that name")
    return batch[name]


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers; refuses to name any other function or class."""

    _ALLOWED = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        # CIFAR was written with numpy 1, where the private package had another name.
        if module == "numpy.core.multiarray":
            module = "numpy._core.multiarray"
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            # latin1 turns Python 2's byte strings into text without loss.
            content = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise RefusedInput(f"{path} is not a CIFAR batch: {error}") from error
    if not isinstance(content, dict):
        raise RefusedInput(f"{path} is not a CIFAR batch: it holds a {type(content).__name__}")
    return content
