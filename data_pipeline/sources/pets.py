"""Oxford-IIIT Pets in its official layout: `images/` and `annotations/{trainval,test}.txt`.

Source: https://www.robots.ox.ac.uk/~vgg/data/pets/ (Parkhi et al. 2012).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.errors import RefusedInput
from data_pipeline.sources.source import FileSource, find_layout, read_text_lines

_FOLDER = "oxford-iiit-pet"
_GET = "unpack images.tar.gz and annotations.tar.gz of the dataset into one folder and give that"


def read_pets(input_folder: Path, split: str) -> FileSource:
    """List `trainval` or `test` in the order of its annotation file, labelled by breed.

    Raises:
        RefusedInput: A file of the layout is missing or says something impossible.
    """
    needed = ("images", f"annotations/{split}.txt")
    root = find_layout(input_folder, _FOLDER, needed, _GET)
    path = root / "annotations" / f"{split}.txt"
    files: list[str] = []
    labels: list[int] = []
    breeds: dict[int, str] = {}
    for line_number, line in enumerate(read_text_lines(path), start=1):
        if line.startswith("#"):
            continue
        name, *numbers = line.split()
        if len(numbers) != 3 or not numbers[0].isdecimal() or int(numbers[0]) < 1:
            raise RefusedInput(
                f"{path}, line {line_number}: {line!r} should be an image name and three numbers, "
                "of which the first is the breed, counted from 1"
            )
        files.append(f"images/{name}.jpg")
        labels.append(int(numbers[0]) - 1)
        breeds[labels[-1]] = name.rsplit("_", 1)[0].replace("_", " ").title()
    if sorted(breeds) != list(range(len(breeds))):
        raise RefusedInput(f"{path} lists the breeds {sorted(breeds)}, which leave gaps; {_GET}")
    return FileSource(
        name="pets",
        split=split,
        classes=tuple(breeds[number] for number in sorted(breeds)),
        labels=np.array(labels, dtype=np.int64),
        root=root,
        files=files,
    )
