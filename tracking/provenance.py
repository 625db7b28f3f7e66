"""Where a run comes from: commit, versions, command, host, devices, Slurm job."""

import functools
import getpass
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "torchvision",
    "deepspeed",
    "accelerate",
    "timm",
    "webdataset",
    "mlflow",
    "numpy",
    "safetensors",
)
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_CLUSTER_NAME",
)
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_OPTION = re.compile(r"((?:password|passwd|token|secret|api_?key)=)[^&\s]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with user names and passwords in URLs, and secrets in their queries, taken out."""
    return _SECRET_OPTION.sub(r"\1***", _USER_AND_PASSWORD.sub("", text))


def command_line() -> str:
    """The command this process was started with, quoted for a shell, without credentials."""
    return shlex.join(["python", *(redact(argument) for argument in sys.orig_argv[1:])])


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run computes."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_state() -> tuple[str, bool | None]:
    """The checkout's commit, and whether tracked files differ; ("unknown", None) without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY_ROOT), *arguments]
    # GIT_OPTIONAL_LOCKS: `status` must not take the index lock away from someone who is committing.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=20, env=environment
    )
    return done.stdout.strip()


def devices() -> list[str]:
    """Names of the GPUs this process sees; empty on CPU or before torch was imported."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def environment_record() -> dict[str, Any]:
    """Everything `environment.json` of a run folder says about this process; plain JSON values."""
    commit, is_dirty = git_state()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": commit,
        "dirty": is_dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": package_versions(),
        "host": socket.gethostname(),
        "user": _user(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "devices": devices(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "slurm": {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ},
    }


def run_tags() -> dict[str, str]:
    """The environment as MLflow tags: what one filters and groups runs by."""
    record = environment_record()
    tags = {
        "commit": record["commit"],
        "dirty": {True: "yes", False: "no", None: "unknown"}[record["dirty"]],
        "command": record["command"],
        "host": record["host"],
        "world_size": str(record["world_size"]),
        "device": record["devices"][0] if record["devices"] else "cpu",
        "version.python": record["python"],
        # These three fill columns that the MLflow pages have of their own.
        "mlflow.user": record["user"],
        "mlflow.source.name": Path(sys.argv[0] or "python").name,
        "mlflow.source.git.commit": record["commit"],
    }
    tags |= {f"version.{name}": version for name, version in record["versions"].items()}
    return tags | {name.lower().replace("_", ".", 1): v for name, v in record["slurm"].items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's numeric user need not have a name.
        return str(os.getuid())
