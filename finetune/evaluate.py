"""`python -m finetune.evaluate`: scores of weights on every image of a test set, without training.

python -m finetune.evaluate --weights runs/finetune-cifar10 --task cifar10
python -m finetune.evaluate --weights timm:vit_base_patch16_224 --shards /shards/in1k/val --json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.command_line import run_command
from configs.evaluation import EvaluateConfig
from configs.load import load_config
from finetune.score_command import run_score_command


def main(argv: Sequence[str]) -> int:
    """Score weights; the exit code."""
    config = load_config(EvaluateConfig, argv, "python -m finetune.evaluate").config

    def work() -> dict[str, Any]:
        from finetune.evaluation import evaluate_weights  # torch from here on

        return evaluate_weights(config)

    return run_score_command(config, work)


if __name__ == "__main__":
    run_command(main)
