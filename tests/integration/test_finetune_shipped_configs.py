"""Every shipped finetuning config trains one step at toy size, through the real entry script.

The pretraining configs have theirs in tests/pretrain/test_shipped_configs.py.
"""

import json
import multiprocessing
from pathlib import Path

import pytest

from tests.finetune.toy_task import write_image_folder
from tests.integration.finetune_one_step import finetune_one_step

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has the slow imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "accelerate"])
    return context


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"))


def run(processes, target, *arguments) -> int | None:
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        pytest.fail(f"{target.__name__} of {arguments[0].name} took over {SECONDS} s")
    return process.exitcode


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/finetune/*.yaml")), ids=lambda p: p.stem)
def test_finetune_config_takes_a_step(processes, images, tmp_path, path):
    assert run(processes, finetune_one_step, path, images, tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 1
    assert result["images_seen"] == 4
