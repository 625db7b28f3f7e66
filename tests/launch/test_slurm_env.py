"""Ranks from whoever started the process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from launch.slurm_env import free_port, set_rank_variables

ROOT = Path(__file__).resolve().parents[2]
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


def test_ranks_of_a_slurm_task():
    environment = {**TASK, "MASTER_ADDR": "node001"}
    assert set_rank_variables(environment) == "srun"
    assert {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
    }
    assert environment["LOCAL_WORLD_SIZE"] == "4" and environment["MASTER_ADDR"] == "node001"
    assert 1024 < int(environment["MASTER_PORT"]) < 65536


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [("4(x2)", "1", "4"), ("3(x2),2", "2", "2"), ("8", "0", "8"), ("what", "0", "8")],
)
def test_ranks_of_this_node(tasks, node, expected):
    environment = {
        **TASK,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": node,
        "MASTER_ADDR": "n",
    }
    set_rank_variables(environment)
    assert environment["LOCAL_WORLD_SIZE"] == expected


def test_every_task_finds_the_same_port_and_a_restart_another():
    ports = set()
    for restart in ({}, {"SLURM_RESTART_COUNT": "1"}):
        of_tasks = set()
        for task in range(8):
            environment = {**TASK, **restart, "SLURM_PROCID": str(task), "MASTER_ADDR": "n"}
            set_rank_variables(environment)
            of_tasks.add(environment["MASTER_PORT"])
        assert len(of_tasks) == 1
        ports |= of_tasks
    assert len(ports) == 2


def test_several_nodes_need_an_address():
    with pytest.raises(RefusedInput, match=r"MASTER_ADDR is not set.*export MASTER_ADDR"):
        set_rank_variables(dict(TASK))


def test_one_node_needs_no_address():
    environment = {**TASK, "SLURM_STEP_NUM_NODES": "1"}
    set_rank_variables(environment)
    assert environment["MASTER_ADDR"] == "127.0.0.1"


def test_a_launcher_is_believed_also_inside_a_slurm_job():
    environment = {**TASK, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}
    assert set_rank_variables(environment) == "launcher"
    assert environment["RANK"] == "3" and environment["LOCAL_WORLD_SIZE"] == "2"


def test_a_batch_script_is_not_a_task():
    environment = {"SLURM_PROCID": "0", "SLURM_JOB_ID": "4711"}
    assert set_rank_variables(environment) == "alone"


def test_a_process_alone_is_rank_0_of_1_on_a_free_port():
    environment: dict[str, str] = {}
    assert set_rank_variables(environment) == "alone"
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(environment["MASTER_PORT"])))


def test_free_ports_differ():
    assert len({free_port() for _ in range(5)}) > 1


def test_a_script_under_srun_finds_what_torchrun_would_set(tmp_path):
    script = tmp_path / "script.py"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    script.write_text(f"import os, sys\nprint(*map(os.environ.get, {names}), *sys.argv[1:])\n")
    variables = {name: value for name, value in os.environ.items() if name not in names}
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "2",
        "SLURM_TASKS_PER_NODE": "2",
    }
    command = [sys.executable, str(ROOT / "launch" / "under_srun.py"), str(script), "--a", "b c"]
    done = subprocess.run(
        command, env=variables | slurm, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "1 2 1 2 127.0.0.1 --a b c\n", done.stderr
    alone = subprocess.run(command[:2], capture_output=True, text=True, timeout=60)
    assert alone.returncode == 2 and "give a script" in alone.stderr
