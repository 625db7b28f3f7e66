"""Ranks from the environment, random state, agreement of ranks."""

import os
import random

import numpy as np
import pytest
import torch

from training import processes

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


@pytest.fixture
def environment(monkeypatch):
    for name in (*RANK_VARIABLES, "SLURM_CPUS_PER_TASK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_alone(environment):
    assert (processes.rank(), processes.world_size()) == (0, 1)
    assert (processes.local_rank(), processes.local_world_size()) == (0, 1)
    assert processes.is_main()


def test_ranks_come_from_the_launchers_environment(environment):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        environment.setenv(name, value)
    environment.setenv("LOCAL_SIZE", "4")  # the deepspeed launcher's name for it
    assert (processes.rank(), processes.world_size()) == (5, 8)
    assert (processes.local_rank(), processes.local_world_size()) == (1, 4)
    assert not processes.is_main()


def test_ranks_of_a_machine_share_its_cores(environment):
    environment.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [processes.default_threads(n) for n in (1, 4, 5, 64)] == [12, 3, 2, 1]


def test_under_srun_a_ranks_share_is_its_cpus_per_task(environment):
    environment.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    environment.setenv("SLURM_CPUS_PER_TASK", "16")
    environment.setenv("SLURM_PROCID", "3")
    assert processes.default_threads(4) == 16


def draw():
    return (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1))


def test_a_captured_state_is_restored_through_a_file(tmp_path):
    processes.set_seed(3)
    draw()
    np.random.standard_normal()  # leaves a cached second value behind
    torch.save(processes.capture_rng_state(), tmp_path / "rng.pt")
    expected = draw(), np.random.standard_normal()
    draw()
    processes.restore_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (draw(), np.random.standard_normal()) == expected


def test_a_state_from_a_gpu_machine_is_restored_without_one():
    state = processes.capture_rng_state() | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    expected = draw()
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    processes.restore_rng_state(state)
    assert draw() == expected


def test_set_seed_seeds_all_generators():
    processes.set_seed(2**40 + 1)
    first = draw()
    processes.set_seed(2**40 + 1)
    assert draw() == first


def test_any_rank_alone_is_the_flag():
    assert processes.any_rank(True) is True
    assert processes.any_rank(False) is False


def _ask(rank, world_size, address, answers):
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world_size
    )
    answers[rank] = [
        processes.any_rank(rank == 1),
        processes.any_rank(False),
        processes.rank() == rank,
        processes.world_size(),
    ]
    torch.distributed.destroy_process_group()


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_one_rank_is_enough(tmp_path):
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        answers = manager.dict()
        arguments = (2, f"file://{tmp_path}/rendezvous", answers)
        torch.multiprocessing.spawn(_ask, arguments, nprocs=2)
        assert dict(answers) == {rank: [True, False, True, 2] for rank in (0, 1)}


def test_deterministic_kernels_are_asked_for(environment):
    environment.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        processes.make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
