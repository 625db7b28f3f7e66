"""One-rank pretraining inside the test process, with a tiny model on tiny shards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from configs.schema import PretrainConfig
from launch.slurm_env import set_rank_variables
from pretrain.deepspeed_import import import_deepspeed
from pretrain.plan import Plan, Ranks, make_plan
from tests.integration.pretrain_processes import options, tiny_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> dict[str, Path]:
    """Options that name a training set of 60 images in 2 shards and 10 validation images."""
    folder = tmp_path_factory.mktemp("shards")
    return {
        "data.train": tiny_shards(folder / "train", (33, 27), seed=0),
        "data.val": tiny_shards(folder / "val", (10,), seed=1),
    }


@pytest.fixture
def plan_of(shards, tmp_path) -> Callable[..., Plan]:
    """Makes the plan of a run in `tmp_path / "run"`, from changes to the tiny options."""

    def make(changes: dict[str, Any] | None = None, *, world_size: int = 1, rank: int = 0) -> Plan:
        given = {**shards, "run-dir": tmp_path / "run", **(changes or {})}
        config = load_config(PretrainConfig, options(given), "test").config
        return make_plan(config, Ranks(rank, world_size, rank, world_size))

    return make


@pytest.fixture
def one_rank(monkeypatch) -> Iterator[Callable[[], None]]:
    """Lets this process be the only rank of a run; calling it makes room for another run."""
    import_deepspeed()
    import deepspeed.comm.comm
    import torch
    from deepspeed.utils import groups

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    variables: dict[str, str] = {}
    set_rank_variables(variables)
    variables["OMP_NUM_THREADS"] = "1"  # two would spin against whatever else runs
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    threads, made_groups = torch.get_num_threads(), dict(vars(groups))

    def forget() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        # DeepSpeed would go on believing in the groups that are gone.
        deepspeed.comm.comm.cdb = None
        vars(groups).update(made_groups)

    yield forget
    forget()
    torch.set_num_threads(threads)


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    """torch computes in fp16 on any CPU, slowly; DeepSpeed refuses to without the instructions."""
    import_deepspeed()
    import deepspeed

    accelerator = deepspeed.get_accelerator()
    monkeypatch.setattr(type(accelerator), "is_fp16_supported", lambda _: True)
