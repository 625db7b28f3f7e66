"""What the commands that only look at weights have in common, before torch is imported."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.command_line import EXIT_FINISHED, EXIT_REFUSED
from configs.errors import RefusedInput
from configs.evaluation import ScoringConfig
from configs.load import flatten
from configs.yaml_file import read_yaml, validate
from finetune.options import refuse_missing_weights
from training.processes import is_main
from training.run_folder import RunFolder

# Options that change neither images nor scores (but for rounding), so that a result stays valid.
_MAY_DIFFER = ("run_dir", "as_json", "data_dir", "batch_images", "loader.", "tracking.")


def run_score_command(config: ScoringConfig, work: Callable[[], dict[str, Any]]) -> int:
    """Do `work` unless its result is there already, and print the result as JSON if asked to.

    Raises:
        RefusedInput: No weights are given, or the run folder has the result of other options; on
            the main process only, since one message is enough.
    """
    stdout = sys.stdout
    try:
        if not config.weights:
            raise RefusedInput("--weights is not set: give a run folder, a weights file or a name")
        refuse_missing_weights("--weights", config.weights, others=" or timm:NAME")
        with contextlib.redirect_stdout(sys.stderr if config.as_json else stdout):
            result = _earlier_result(config)
            if result is None:
                result = work()
    except RefusedInput:
        if is_main():
            raise
        return EXIT_REFUSED
    if config.as_json and is_main():
        stdout.write(json.dumps(result, indent=2) + "\n")
    return EXIT_FINISHED


def _earlier_result(config: ScoringConfig) -> dict[str, Any] | None:
    """What the run folder holds, if this command has been through with it."""
    file = (config.run_dir or Path()) / "config.yaml"
    if config.run_dir is None or not file.is_file():
        return None
    values = read_yaml(file)
    if "stage" in values.values:
        raise RefusedInput(
            f"--run-dir {config.run_dir} holds a run of {values.values['stage']}; give another "
            "folder for the result"
        )
    if not RunFolder(config.run_dir).finished():
        return None
    before, now = flatten(validate(type(config), values)), flatten(config)
    free = tuple(_MAY_DIFFER)
    names = [n for n in now if before[n] != now[n] and not n.startswith(free)]
    if names:
        told = "; ".join(f"{name} was {before[name]}, now {now[name]}" for name in names)
        raise RefusedInput(
            f"{config.run_dir} holds the result of other options: {told}. Give another --run-dir"
        )
    if is_main():
        sys.stdout.write(f"{config.run_dir}: scored already; its result is in result.json\n")
    result: dict[str, Any] = json.loads((config.run_dir / "result.json").read_text("utf-8"))
    return result
