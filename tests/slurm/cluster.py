"""A real Slurm cluster of emulated nodes on this machine: slurmctld, a slurmd per node, munged.

Its ports, key, configuration and logs are its own, in a folder of its own, so that neither a Slurm
of this machine nor another test run is touched. Without accounting and control groups; every node
has one core and this machine's address.
"""

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.pretrain_processes import environment

KEEPER = Path(__file__).with_name("cluster_keeper.py")
NODES = ("n0", "n1", "n2")
# Until a node that does not answer counts as lost. Those of a busy machine can be slow to answer.
PATIENT_SECONDS, IMPATIENT_SECONDS = 300, 6

_CONFIG = """
ClusterName=vitrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout={slurmd_timeout}
ReturnToService=2
KillWait=15
MinJobAge=3600
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def wait_until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    """Look every tenth of a second; fail with what `told` says when it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


@dataclass
class SlurmCluster:
    """A running cluster; `variables` point Slurm's commands at it."""

    folder: Path
    variables: dict[str, str]
    keeper: subprocess.Popen[str]
    ports: list[int]
    lost: set[str] = field(default_factory=set)

    def command(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Run a command in the cluster's environment; gives what it printed."""
        done = subprocess.run(
            words, env=self.variables, cwd=cwd, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` says of a job, or of each task of an array."""
        lines = self.command("scontrol", "show", "job", "-o", job).splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line]

    def lose(self, node: str) -> None:
        """Kill a node: its daemon, its job steps, their tasks. Slurm does not notice for long."""
        self.lost.add(node)
        for process in self._processes_of(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def notice_loss(self, node: str) -> None:
        """Let Slurm lose its patience with a node that does not answer."""
        self._reconfigure(IMPATIENT_SECONDS)
        wait_until(lambda: "down" in self._state(node), 120, self.logs)

    def heal(self) -> None:
        """Start the daemons of lost nodes again, if any; all nodes are usable afterwards."""
        if not self.lost:
            return
        self._reconfigure(PATIENT_SECONDS)
        for node in self.lost:
            self._start_node(node)
        self.lost.clear()
        self.wait_idle()

    def wait_idle(self) -> None:
        """Until all nodes could take a job, and none is still busy with the end of one."""

        def is_idle() -> bool:
            keeper = psutil.Process(self.keeper.pid)
            names = [process.name() for process in keeper.children()]
            states = {self._state(node) for node in NODES if node not in self.lost}
            return "slurmstepd" not in names and states == {"idle"}

        wait_until(is_idle, 120, self.logs)

    def logs(self) -> str:
        """The ends of the logs of Slurm's daemons."""
        paths = sorted(self.folder.glob("slurm*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in paths)

    def start_daemons(self) -> None:
        (self.folder / "state").mkdir()
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()
        self._write_config(PATIENT_SECONDS)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        munge = self.folder / "munge"
        options = {"key-file": key, "socket": f"{munge}.socket", "pid-file": f"{munge}.pid"}
        options |= {"log-file": f"{munge}-own.log", "seed-file": f"{munge}.seed"}
        words = [f"--{name}={value}" for name, value in options.items()]
        self._start("munged", "--foreground", "--force", "--num-threads=2", *words)
        wait_until(Path(f"{munge}.socket").exists, 60, self.logs)
        self._start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self._start_node(node)
        self.wait_idle()

    def _start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def _start(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=self.variables["PATH"])
        assert program is not None, f"{name} is not installed"
        output = self.folder / f"{name}{words[-1] if name == 'slurmd' else ''}.log"
        assert self.keeper.stdin is not None
        self.keeper.stdin.write(json.dumps([[program, *words], str(output)]) + "\n")
        self.keeper.stdin.flush()

    def _write_config(self, slurmd_timeout: int) -> None:
        host = socket.gethostname().split(".")[0]
        port, *node_ports = self.ports
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=1"
            for node, node_port in zip(NODES, node_ports, strict=True)
        ]
        text = _CONFIG.format(
            folder=self.folder,
            host=host,
            port=port,
            user=psutil.Process().username(),
            # Job ids of two clusters on this machine differ, and so do the ports of their runs.
            first_job=port * 100,
            slurmd_timeout=slurmd_timeout,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(text)

    def _reconfigure(self, slurmd_timeout: int) -> None:
        self._write_config(slurmd_timeout)
        self.command("scontrol", "reconfigure")

    def _state(self, node: str) -> str:
        try:
            states = self.command("sinfo", "--noheader", "--nodes", node, "--format", "%T")
            return states.partition("\n")[0].strip()  # the same in all partitions
        except AssertionError:  # slurmctld is not up yet
            return ""

    def _processes_of(self, node: str) -> list[psutil.Process]:
        """The node's slurmd and job steps first: otherwise a step could report its tasks' end."""
        trees = []
        for child in psutil.Process(self.keeper.pid).children():
            tree = [child, *child.children(recursive=True)]
            if child.name() == "slurmd" and child.cmdline()[-1] == node:
                trees.insert(0, tree)
            elif child.name() == "slurmstepd" and any(map(_is_task_of(node), tree)):
                trees.append(tree)
        return [process for tree in trees for process in tree]


def _is_task_of(node: str) -> Callable[[psutil.Process], bool]:
    def ask(process: psutil.Process) -> bool:
        try:
            return process.environ().get("SLURMD_NODENAME") == node
        except psutil.Error:
            return False

    return ask


@contextmanager
def running_cluster() -> Iterator[SlurmCluster]:
    """Start a cluster and wait until its nodes are idle; whatever happens, nothing of it stays."""
    with ExitStack() as stack:
        # Not pytest's folder: the path of a socket may be 107 bytes long.
        folder = Path(tempfile.mkdtemp(prefix="vitrain-slurm-"))
        variables = {
            name: value
            for name, value in environment().items()
            if not name.startswith(("SLURM", "SBATCH", "SQUEUE", "SINFO", "SALLOC", "SRUN"))
        }
        variables["SLURM_CONF"] = str(folder / "slurm.conf")
        variables["PATH"] += ":/usr/sbin:/sbin"
        keeper = subprocess.Popen(
            [sys.executable, str(KEEPER), str(folder)],
            stdin=subprocess.PIPE,
            env=variables,
            text=True,
            start_new_session=True,  # an interrupt from the keyboard is for the test suite
        )
        stack.callback(keeper.wait, 30)
        assert keeper.stdin is not None
        stack.callback(keeper.stdin.close)
        cluster = SlurmCluster(folder, variables, keeper, _free_ports(1 + len(NODES)))
        cluster.start_daemons()
        yield cluster


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
