"""Oxford Flowers-102 in its official layout: `jpg/`, `imagelabels.mat`, `setid.mat`.

Source: https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (Nilsback and Zisserman 2008).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import RefusedInput
from data_pipeline.sources.source import FileSource, find_layout

_FOLDER = "flowers-102"
_GET = "unpack 102flowers.tgz beside imagelabels.mat and setid.mat and give that folder"
_SPLIT_VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}


def read_flowers102(input_folder: Path, split: str) -> FileSource:
    """List `train`, `val` or `test` in the order of `setid.mat`; always 102 classes.

    Raises:
        RefusedInput: A file of the layout is missing or says something impossible.
    """
    # torchvision holds the names that go with the numbers; it is slow to import.
    from torchvision.datasets import Flowers102

    root = find_layout(input_folder, _FOLDER, ("jpg", "imagelabels.mat", "setid.mat"), _GET)
    all_labels = _numbers(root / "imagelabels.mat", "labels") - 1
    chosen = _numbers(root / "setid.mat", _SPLIT_VARIABLES[split])
    if chosen.size and (chosen.min() < 1 or chosen.max() > len(all_labels)):
        raise RefusedInput(
            f"{root / 'setid.mat'} names image {chosen.max()}, imagelabels.mat has labels of "
            f"1..{len(all_labels)}; {_GET}"
        )
    labels = all_labels[chosen - 1]
    classes = tuple(Flowers102.classes)
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        raise RefusedInput(f"{root / 'imagelabels.mat'}: labels must be 1..{len(classes)}; {_GET}")
    return FileSource(
        name="flowers102",
        split=split,
        classes=classes,
        labels=labels,
        root=root,
        files=[f"jpg/image_{number:05d}.jpg" for number in chosen.tolist()],
    )


def _numbers(path: Path, variable: str) -> NDArray[np.int64]:
    """A variable of a MATLAB file as a flat array of whole numbers."""
    from scipy.io import loadmat

    try:
        values = loadmat(path, variable_names=[variable])
        return np.asarray(values[variable]).ravel().astype(np.int64)
    except KeyError as error:
        raise RefusedInput(f"{path} has no variable '{variable}'; {_GET}") from error
    except Exception as error:  # scipy raises many kinds for a file that is not MATLAB's
        raise RefusedInput(f"{path} cannot be read as a MATLAB file ({error}); {_GET}") from error
