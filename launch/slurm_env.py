"""Ranks from Slurm: `srun python launch/pretrain.py` needs no other launcher.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Under `srun` the same facts have other names; a process started alone has none.
Nothing heavy is imported here.
"""

from __future__ import annotations

import re
import socket
from collections.abc import MutableMapping

from configs.errors import RefusedInput

# Ports of two jobs on one node differ because their job ids do, and of two starts of one job
# because the first one's port can still be in TIME_WAIT.
_FIRST_PORT = 20_000
_NUM_PORTS = 20_000


def set_rank_variables(environment: MutableMapping[str, str]) -> str:
    """Fill in the variables that torch.distributed reads, where no launcher has.

    Returns:
        Who started this process: "launcher" (nothing was changed), "srun", or "alone".

    Raises:
        RefusedInput: Slurm started several tasks and nobody said where rank 0 listens.
    """
    if "RANK" in environment:
        environment.setdefault("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1"))
        return "launcher"
    # SLURM_PROCID without a step id is a batch script or a login shell, not a task of srun.
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        _from_slurm(environment)
        return "srun"
    environment.update(
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    return "alone"


def free_port() -> int:
    """A TCP port that nobody listens on at this moment, on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _from_slurm(environment: MutableMapping[str, str]) -> None:
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = num_tasks
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = str(_tasks_on_this_node(environment, int(num_tasks)))
    if "MASTER_ADDR" not in environment:
        if int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))) > 1:
            raise RefusedInput(
                "MASTER_ADDR is not set, and this job runs on several nodes; put "
                "`export MASTER_ADDR=$(hostname)` before srun in the batch script "
                "(it runs on the first node), as launch/job.sbatch does"
            )
        environment["MASTER_ADDR"] = "127.0.0.1"
    environment.setdefault("MASTER_PORT", str(_port_of_job(environment)))


def _port_of_job(environment: MutableMapping[str, str]) -> int:
    job = int(environment["SLURM_JOB_ID"])
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    step = int(environment["SLURM_STEP_ID"])
    return _FIRST_PORT + (job * 37 + restarts * 11 + step) % _NUM_PORTS


def _tasks_on_this_node(environment: MutableMapping[str, str], num_tasks: int) -> int:
    """Slurm writes the tasks of each node as "4(x3),2": 4 on the first three nodes, then 2."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if not text:
        return num_tasks
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return num_tasks
        counts += [int(match[1])] * int(match[2] or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else num_tasks
