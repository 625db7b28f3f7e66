"""Which images a few-shot probe looks at, and how."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs.errors import RefusedInput
from configs.few_shot import FewShotConfig, ProbeConfig
from data_pipeline.augment import SquareTransform
from data_pipeline.few_shot_images import (
    find_task_shards,
    open_few_shot_images,
    open_few_shot_tasks,
)
from data_pipeline.index import ShardedDataset
from tests.data_pipeline.sample_shards import plain_image, write_dataset


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Folder of a task of 5 classes: 43 training images (8 or 9 of each class), 11 test images."""
    folder = tmp_path_factory.mktemp("tasks") / "colours"
    for part, counts in (("train", (20, 23)), ("val", (11,))):
        write_dataset(folder / part, [[plain_image(n) for n in range(c)] for c in counts], 5)
    return folder


def test_each_probe_has_so_many_images_of_each_class(task):
    (images,) = open_few_shot_tasks((str(task),), ProbeConfig(shots=(1, 3, 8), seeds=(4, 7)))
    assert images.name == "colours" and images.test.num_images == 11 and images.notice is None
    assert list(images.choices) == [(s, seed) for s in (1, 3, 8) for seed in (4, 7)]
    for (shots, seed), rows in images.choices.items():
        assert np.bincount(images.train.label[rows]).tolist() == [shots] * 5
        assert set(rows) <= set(images.choices[8, seed])
    assert set(images.choices[3, 4]) != set(images.choices[3, 7])
    used = set(np.concatenate(list(images.choices.values())))
    assert used == set(range(images.train.num_images))


def test_more_images_than_there_are_make_no_probe(task):
    options = ProbeConfig(shots=(5, 10, 25))
    (images,) = open_few_shot_tasks((str(task),), options)
    assert {shots for shots, _ in images.choices} == {5}
    assert images.notice == (
        "few-shot task colours: class 'class3' has 8 training images: no probe on 10 and 25 images "
        "of each class"
    )
    with pytest.raises(RefusedInput, match=r"8 training images, fewer than any of shots = 10 25"):
        open_few_shot_tasks((str(task),), ProbeConfig(shots=(10, 25)))


def test_shards_that_finetuning_built_are_found(task, tmp_path):
    for part, name in (("train", "colours-train"), ("val", "colours-test")):
        (tmp_path / name).symlink_to(task / part)
    place = str(tmp_path / "colours")
    assert find_task_shards(place) == (tmp_path / "colours-train", tmp_path / "colours-test")
    with pytest.raises(RefusedInput, match=r"nothing has no shards in train/ and test/ or val/"):
        find_task_shards(str(tmp_path / "nothing"))
    with pytest.raises(RefusedInput, match="two are called 'colours'"):
        open_few_shot_tasks((str(task), place), ProbeConfig(shots=(1,)))


def test_label_sets_are_refused(task, monkeypatch):
    monkeypatch.setattr(ShardedDataset, "is_multi_label", True)
    with pytest.raises(RefusedInput, match=r"task x: .* has label sets"):
        open_few_shot_images("x", (task / "train", task / "val"), ProbeConfig())


def test_what_fits_no_probe_is_refused(task, tmp_path):
    other = write_dataset(tmp_path / "other", [[plain_image(0)]], 4).folder
    with pytest.raises(RefusedInput, match="do not have the same classes"):
        open_few_shot_images("x", (task / "train", other), ProbeConfig())
    with pytest.raises(ValueError, match="shots = 5 5: one is given twice"):
        ProbeConfig(shots=(5, 5))
    with pytest.raises(ValueError, match="are both set; give one"):
        FewShotConfig(every_steps=1, every_epochs=1)


def test_images_are_squeezed_to_a_square_and_their_centre_is_taken():
    image = torch.randint(0, 256, (3, 40, 90), generator=torch.Generator().manual_seed(0)).byte()
    out = torch.empty(3, 28, 28, dtype=torch.uint8)
    SquareTransform((28, 28))(image, out)
    square = F.interpolate(image[None], (32, 32), mode="bicubic", antialias=True)[0]
    assert torch.equal(out, square[:, 2:30, 2:30])
