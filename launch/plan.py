"""`python -m launch.plan`: what a pretraining run would need, without a GPU.

    python -m launch.plan --config configs/pretrain/vit_h14_in21k.yaml --gpus 32 --gpu h100-80gb

docs/planning.md explains the output. (What one process of a real run is going to do is another
plan, `pretrain.plan`.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from configs.command_line import EXIT_FINISHED, run_command
from configs.load import load_config
from configs.schema import PretrainConfig
from launch.planner.options import parse_options
from launch.planner.request import check_request
from launch.planner.text import plan_text


def main(argv: Sequence[str]) -> int:
    """Print the plan; it is a plan even where nothing fits.

    Raises:
        RefusedInput: Something in config or options cannot be planned.
    """
    options = parse_options(argv)
    words = ["--config", str(options.config), *options.config_options]
    config = load_config(PretrainConfig, words, "python -m launch.plan").config
    request = check_request(options, config)

    # torch takes seconds to import: only once the request is known to be good.
    from launch.planner.estimate import estimate

    plan = estimate(request)
    sys.stdout.write(json.dumps(plan, indent=2) + "\n" if options.json else plan_text(plan))
    return EXIT_FINISHED


if __name__ == "__main__":
    run_command(main)
