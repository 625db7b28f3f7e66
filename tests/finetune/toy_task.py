"""A task small enough for a test: images of three classes told apart by colour."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.schema import FinetuneConfig

CLASSES = ("blue", "green", "red")
TRAIN_IMAGES_PER_CLASS = 20
TEST_IMAGES_PER_CLASS = 5


def write_image_folder(folder: Path, *, seed: int = 0) -> Path:
    """train/ and test/ with a folder per class, 12 x 16 px PNG."""
    generator = np.random.default_rng(seed)
    for split, count in (("train", TRAIN_IMAGES_PER_CLASS), ("test", TEST_IMAGES_PER_CLASS)):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = generator.integers(0, 60, (12, 16, 3), dtype=np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{image:03d}.png")
    return folder


def forget_accelerate() -> None:
    """Let the next transfer in this process choose its own precision and device."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def toy_config(**changes: Any) -> FinetuneConfig:
    """A run of seconds: a tiny model, fp32, nothing sent to MLflow."""
    options: dict[str, Any] = {
        "task": "image-folder",
        "resolution": 8,
        "precision": "fp32",
        "steps": 6,
        "warmup_steps": 1,
        "learning_rates": (0.1,),
        "model": {"width": 32, "depth": 1, "heads": 2, "patch_px": 4, "image_px": 8},
        "batch": {"global_images": 8},
        "loader": {"threads": 1, "read_ahead_batches": 2},
        "evaluation": {"batch_images": 16},
        "logging": {"every_steps": 1},
        "tracking": {"enabled": False},
    }
    return FinetuneConfig.model_validate({**options, **changes})
