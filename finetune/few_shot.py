"""`python -m finetune.few_shot`: few-shot linear probes of weights on a task (docs/evaluation.md).

python -m finetune.few_shot --weights runs/my-pretraining --task cifar10
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.command_line import run_command
from configs.evaluation import FewShotRunConfig
from configs.load import load_config
from finetune.options import short_name
from finetune.score_command import run_score_command


def main(argv: Sequence[str]) -> int:
    """Fit and score the probes; the exit code."""
    config = load_config(FewShotRunConfig, argv, "python -m finetune.few_shot").config
    if config.run_dir is None:
        run_dir = Path("runs") / f"few-shot-{config.task}-{short_name(config.weights)}"
        config = config.model_copy(update={"run_dir": run_dir})

    def work() -> dict[str, Any]:
        from finetune.probing import probe_weights  # torch from here on

        return probe_weights(config)

    return run_score_command(config, work)


if __name__ == "__main__":
    run_command(main)
