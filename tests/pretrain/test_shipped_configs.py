"""Every shipped pretraining config makes a step, at toy size."""

from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import PretrainConfig
from pretrain import loop
from pretrain.plan import Ranks, make_plan
from tests.data_pipeline.sample_label_sets import label_set_dataset

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "pretrain").glob("*.yaml"))


@pytest.fixture(scope="module")
def label_sets(tmp_path_factory):
    """Options that name the same few images, of four classes, for training and validation."""
    folder = label_set_dataset(tmp_path_factory.mktemp("sets")).folder
    return {"data.train": folder, "data.val": folder}


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_shipped_config_makes_a_step(path, shards, label_sets, one_rank, tmp_path):
    """Model and batch are made small; loss, schedule, augmentation, ZeRO and precision stay."""
    file = load_config(PretrainConfig, ["--config", str(path)], "test").config
    toy = {
        "model.width": 32,
        "model.depth": 1,
        "model.heads": 2,
        "model.mlp-dim": 32,
        "model.image-px": 2 * file.model.patch_px,
        "model.num-classes": 4,
        **(label_sets if "openimages" in path.stem else shards),
        "data.eval-resize-px": 3 * file.model.patch_px,
        "schedule.total-steps": 1,
        "batch.global-images": 4,
        "batch.micro-images": 2,
        "evaluation.batch-images": 5,
        "run-dir": tmp_path / "run",
    }
    words = [word for name, value in toy.items() for word in (f"--{name}", str(value))]
    arguments = ["--config", str(path), *words, "--tracking.no-enabled"]
    config = load_config(PretrainConfig, arguments, "test").config
    plan = make_plan(config, Ranks(0, 1, 0, 1))
    assert loop.pretrain(plan) == 0
    assert (plan.run_dir / "export" / "model.safetensors").exists()
