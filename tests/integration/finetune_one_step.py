"""One step of a shipped finetuning config at toy size, in a process that has torch imported."""

from pathlib import Path

from configs.schema import FinetuneConfig
from configs.yaml_file import read_yaml, validate

TOY = {
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "batch.global-images": 4,
    "evaluation.batch-images": 4,
    "loader.threads": 1,
}


def _options(values: dict[str, object]) -> list[str]:
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return [*words, "--tracking.no-enabled"]


def finetune_one_step(path: Path, images: Path, run_dir: Path) -> None:
    """Leave with the exit code of `finetune/run.py` for one step on an image folder."""
    from finetune.run import main

    config = validate(FinetuneConfig, read_yaml(path))
    values: dict[str, object] = {
        **TOY,
        "task": "image-folder",
        "pretrained": "scratch",
        "data-dir": images,
        "resolution": 2 * config.model.patch_px,
        "model.image-px": 2 * config.model.patch_px,
        "steps": 1,
        "learning-rates": config.learning_rates[0],
        "run-dir": run_dir,
    }
    raise SystemExit(main(["--config", str(path), *_options(values)]))
