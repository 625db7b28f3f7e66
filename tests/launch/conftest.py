"""A tiny pretraining run that is submitted to a played Slurm."""

import pytest
import yaml

from launch.submit import main
from tests.integration.pretrain_processes import TINY, tiny_shards
from tests.launch.slurm_commands import path_with, play

# Loading torch for these two takes seconds; tests/launch/test_preflight.py makes them.
QUICK = ("--skip", "disk,memory")


@pytest.fixture(scope="session")
def tiny_train(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards") / "train", (20, 12), seed=0)


@pytest.fixture
def submit(tiny_train, tmp_path, monkeypatch):
    """Submits a tiny run from a folder of its own; sbatch answers 101, 102, ..."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITRAIN_SITE", raising=False)
    counter = tmp_path / "sbatch"
    programs = {
        "sbatch": f'printf "%s\\n" "$*" >> {counter}\necho $((100 + $(wc -l < {counter})))',
        "squeue": "exit 1",
    }
    monkeypatch.setenv("PATH", path_with(play(tmp_path / "bin", programs)))
    values: dict = {
        "stage": "pretrain",
        "data": {"train": str(tiny_train)},
        "run_dir": "my runs/b16",
    }
    for name, value in TINY.items():
        group, _, key = name.rpartition(".")
        (values.setdefault(group, {}) if group else values)[key.replace("-", "_")] = value
    values["tracking"] = {"enabled": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))

    def submit(*words: str, checks=QUICK) -> list[str]:
        argv = ["--config", "tiny.yaml", "--nodes", "2", "--gpus-per-node", "0"]
        assert main([*argv, "--time", "60", *checks, *words]) == 0
        return submit.asked()

    submit.asked = lambda: counter.read_text().splitlines() if counter.exists() else []
    return submit
