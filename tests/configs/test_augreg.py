"""AugReg levels: what each stands for, and what overrides it."""

import pytest

from configs.batch_split import check_mixup
from configs.data_groups import AugmentConfig
from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import FinetuneConfig, PretrainConfig


@pytest.mark.parametrize(
    ("level", "alpha", "randaugment"),
    [
        ("none", 0.0, None),
        ("light1", 0.0, (2, 0.0)),
        ("light2", 0.2, (2, 10.0)),
        ("medium1", 0.2, (2, 15.0)),
        ("medium2", 0.5, (2, 15.0)),
        ("strong1", 0.5, (2, 20.0)),
        ("strong2", 0.8, (2, 20.0)),
    ],
)
def test_levels_are_the_papers(level, alpha, randaugment):
    for cls in (PretrainConfig, FinetuneConfig):
        augment = load_config(cls, ["--augment.level", level], "command").config.augment
        assert (augment.mixup_alpha, augment.randaugment) == (alpha, randaugment)


def test_nothing_is_on_by_default():
    for config in (PretrainConfig(), FinetuneConfig()):
        assert (config.augment.mixup_alpha, config.augment.randaugment) == (0.0, None)


def test_values_override_the_level():
    augment = AugmentConfig(level="medium1", mixup=0.4, randaugment_magnitude=9)
    assert (augment.mixup_alpha, augment.randaugment) == (0.4, (2, 9.0))
    augment = AugmentConfig(level="strong2", mixup=0, randaugment_layers=0)
    assert (augment.mixup_alpha, augment.randaugment) == (0.0, None)
    augment = AugmentConfig(randaugment_layers=1, randaugment_magnitude=5)
    assert augment.randaugment == (1, 5.0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("level=heavy", "augment.level"),
        ("mixup=-0.1", "augment.mixup"),
        ("randaugment-magnitude=31", "augment.randaugment.magnitude"),
        ("randaugment-layers=2", "layers = 2 without a magnitude: give augment.randaugment_m"),
        ("randaugment-magnitude=9", "magnitude = 9.0 with 0 layers does nothing: give augment"),
    ],
)
def test_what_makes_no_sense_is_refused(option, message):
    with pytest.raises(RefusedInput, match=message):
        load_config(PretrainConfig, [f"--augment.{option}"], "command")


def test_mixup_needs_two_images():
    check_mixup(AugmentConfig(level="light1"), 1)
    check_mixup(AugmentConfig(level="light2"), 2)
    with pytest.raises(RefusedInput, match=r"augment.level = light2.*have 1 image each"):
        check_mixup(AugmentConfig(level="light2"), 1)
