"""The finetuning command.

    python finetune/run.py --task cifar100 --pretrained runs/my-pretraining
    accelerate launch --multi_gpu --num_processes 4 finetune/run.py --task cifar100 ...

What can be refused without data or weights is refused here, before torch is imported.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python put this folder first, where the name `finetune` would not be found.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import contextlib
import io
import signal
from collections.abc import Sequence

from configs.command_line import EXIT_FINISHED, EXIT_REFUSED, run_command
from configs.errors import RefusedInput
from configs.load import load_config
from configs.schema import FinetuneConfig
from configs.yaml_file import read_yaml, validate
from finetune.options import (
    check_options,
    identity,
    refuse_differences,
    task_config_file,
    with_run_dir,
)
from training.preemption import STOP_SIGNALS, install_stop_handlers
from training.processes import is_main, world_size
from training.run_folder import RunFolder, open_run_folder


def main(argv: Sequence[str]) -> int:
    """Transfer weights to a task; the exit code: 0 finished, 2 refused, 85 saved, 1 failed."""
    install_stop_handlers(watch_parent=True)
    try:
        return _finetune(argv)
    except RefusedInput:
        if is_main():
            raise
        return EXIT_REFUSED  # the main process says it once for all
    finally:
        # When the first process leaves, launchers signal the others, which are about to, too.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _finetune(argv: Sequence[str]) -> int:
    file = task_config_file(argv)
    with contextlib.redirect_stdout(sys.stdout if is_main() else io.StringIO()):  # for --help
        loaded = load_config(FinetuneConfig, argv, "finetune/run.py", default_file=file)
    config = with_run_dir(loaded.config)
    check_options(config, world_size())
    assert config.run_dir is not None
    # Only looked at here, by every process; what is written to it waits for the folder's lock.
    folder = open_run_folder(config.run_dir, resume=config.resume, is_main=True)
    _refuse_another_run(config, folder)
    if folder.finished():
        if is_main():
            result = folder.path / "result.json"
            sys.stdout.write(f"{folder.path}: this run is finished; its results are in {result}\n")
        return EXIT_FINISHED
    from finetune.transfer import transfer  # torch from here on

    return transfer(config)


def _refuse_another_run(config: FinetuneConfig, folder: RunFolder) -> None:
    """Refuse a folder whose run was started with other options and has come somewhere.

    Weights and images are compared when the run goes on, by digest; a finished one has only names.

    Raises:
        RefusedInput: With each option that differs.
    """
    file = folder.path / "config.yaml"
    if not file.is_file() or not (folder.finished() or folder.has_checkpoint()):
        return
    before = validate(FinetuneConfig, read_yaml(file))
    names = {"pretrained"} if folder.finished() else set()
    refuse_differences(
        identity(before) | before.model_dump(include=names),
        identity(config) | config.model_dump(include=names),
        folder.path,
    )


if __name__ == "__main__":
    run_command(main)
