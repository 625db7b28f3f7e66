"""The task table: for each task its official splits, validation part and files, with their source.

Steps, warmup, crop and learning rates of the protocol are options, so they stand in
`configs/finetune/<task>.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass

_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"


@dataclass(frozen=True)
class Task:
    """One transfer task.

    Attributes:
        source: Name of the reader in `data_pipeline.build`; "" where the folder holds shards.
        train_split: The source's name of the images to train on.
        test_split: The source's name of the images that are scored once, at the end.
        validation_fraction: Share of the training images held out to choose a learning rate.
        folder: Where torchvision puts the files inside the data folder; "" for none.
        needed: What must lie in that folder for the task to be there, relative to it.
        downloads: URLs of the official files; each goes into `download_folder`.
        download_folder: Where the downloaded archives go, inside the data folder.
        protocol: Where splits and validation part are from.
    """

    source: str
    train_split: str = "train"
    test_split: str = "test"
    validation_fraction: float = 0.1
    folder: str = ""
    needed: tuple[str, ...] = ()
    downloads: tuple[str, ...] = ()
    download_folder: str = ""
    protocol: str = ""


_PAPER = "Dosovitskiy et al. 2020, arXiv:2010.11929, and the authors' published code"

TASKS: dict[str, Task] = {
    "cifar10": Task(
        source="cifar10",
        validation_fraction=0.02,
        folder="cifar-10-batches-py",
        needed=("data_batch_1", "test_batch", "batches.meta"),
        downloads=(_CIFAR + "cifar-10-python.tar.gz",),
        protocol=_PAPER,
    ),
    "cifar100": Task(
        source="cifar100",
        validation_fraction=0.02,
        folder="cifar-100-python",
        needed=("train", "test", "meta"),
        downloads=(_CIFAR + "cifar-100-python.tar.gz",),
        protocol=_PAPER,
    ),
    "pets": Task(
        source="pets",
        train_split="trainval",
        validation_fraction=0.1,
        folder="oxford-iiit-pet",
        needed=("images", "annotations"),
        downloads=(_PETS + "images.tar.gz", _PETS + "annotations.tar.gz"),
        download_folder="oxford-iiit-pet",
        protocol=_PAPER,
    ),
    "flowers": Task(
        source="flowers102",
        validation_fraction=0.1,
        folder="flowers-102",
        needed=("jpg", "imagelabels.mat", "setid.mat"),
        downloads=(
            _FLOWERS + "102flowers.tgz",
            _FLOWERS + "imagelabels.mat",
            _FLOWERS + "setid.mat",
        ),
        download_folder="flowers-102",
        protocol=_PAPER,
    ),
    "digits": Task(source="digits", protocol="scikit-learn's embedded digits; the split is ours"),
    "image-folder": Task(source="image-folder", protocol="a folder per class, yours"),
    "shards": Task(source="", protocol="folders that data_pipeline.build or .index wrote, yours"),
}
