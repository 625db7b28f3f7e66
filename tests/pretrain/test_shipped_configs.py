"""Every shipped pretraining config: one step at toy size, or its numbers where it extends another.

What a file that extends another adds is sizes, augmentation and weight decay: they are looked up.
"""

from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import PretrainConfig
from models.zoo import Architecture, build_model
from pretrain import loop
from pretrain.plan import Ranks, make_plan
from tests.data_pipeline.sample_label_sets import label_set_dataset

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "pretrain").glob("*.yaml"))
EXTENDING = [path for path in CONFIGS if "\nextends: " in path.read_text()]
WHOLE = [path for path in CONFIGS if path not in EXTENDING]
SETS = ("in1k", "in21k", "openimages")
# Parameters with a head of 1000 classes (the papers'); level and weight decay on each data set.
# docs/recipes.md says where they are from, and which nobody published.
RECIPES = {
    "ti16": (5_717_416, ("light1", 0.1), ("none", 0.03), ("none", 0.03)),
    "s16": (22_050_664, ("medium2", 0.1), ("light1", 0.03), ("light1", 0.03)),
    "b32": (88_224_232, ("medium2", 0.1), ("light1", 0.1), ("light1", 0.1)),
    "b16": (86_567_656, ("medium2", 0.1), ("medium1", 0.1), ("medium1", 0.1)),
    "l16": (304_326_632, ("medium2", 0.1), ("strong1", 0.1), ("strong1", 0.1)),
    "h14": (632_045_800, ("medium2", 0.1), ("strong1", 0.1), ("strong1", 0.1)),
}


@pytest.fixture(scope="module")
def label_sets(tmp_path_factory):
    """Options that name the same few images, of four classes, for training and validation."""
    folder = label_set_dataset(tmp_path_factory.mktemp("sets")).folder
    return {"data.train": folder, "data.val": folder}


def read(path, *words):
    return load_config(PretrainConfig, ["--config", str(path), *words], "test").config


@pytest.mark.parametrize("path", WHOLE, ids=[path.stem for path in WHOLE])
def test_a_shipped_config_makes_a_step(path, shards, label_sets, one_rank, tmp_path):
    """Model and batch are made small; loss, schedule, augmentation, ZeRO and precision stay."""
    file = read(path)
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
    plan = make_plan(read(path, *words, "--tracking.no-enabled"), Ranks(0, 1, 0, 1))
    assert loop.pretrain(plan) == 0
    assert (plan.run_dir / "export" / "model.safetensors").exists()


def test_every_recipe_is_there():
    names = {path.stem for path in CONFIGS}
    assert {f"vit_{size}_{data}" for size in RECIPES for data in SETS} <= names
    assert {path.stem for path in EXTENDING} == {
        f"vit_{size}_{data}" for size in RECIPES for data in SETS if size != "b16"
    }


@pytest.mark.parametrize("size", RECIPES)
@pytest.mark.parametrize("data", SETS)
def test_a_recipe_is_the_protocols(size, data):
    path = CONFIGS[0].with_name(f"vit_{size}_{data}.yaml")
    config = read(path)
    parameters, *by_set = RECIPES[size]
    architecture = Architecture.from_config(config.model, 1000)
    model = build_model(architecture, device="meta")
    extra = architecture.width * (architecture.width + 1) if data == "in1k" else 0
    assert sum(p.numel() for p in model.parameters()) == parameters + extra
    assert (config.augment.level, config.optim.weight_decay) == by_set[SETS.index(data)]
    assert (config.loss.kind, config.optim.lr, config.optim.clip_norm) == ("sigmoid", 1e-3, 1.0)
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("cosine", 10_000)
    assert config.schedule.epochs == (90 if data == "openimages" else 300)
    assert config.batch.global_images == 4096 and 4096 % config.batch.micro_images == 0
    assert config.model.head_bias == {"in1k": -6.9, "in21k": -10.0, "openimages": 0.0}[data]
    assert config.model.pool == ("token" if data == "in1k" else "mean")
    text = path.read_text()
    assert all(word in text for word in ("# Reproduces:", "# Hardware:", "not measured here"))
    assert f"--config configs/pretrain/{path.name}" in text
