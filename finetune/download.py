"""Fetch a task's official files with torchvision, or say exactly what to fetch by hand."""

from __future__ import annotations

import http.client
import logging
import socket
from pathlib import Path
from typing import Any

from configs.errors import RefusedInput
from finetune.tasks import TASKS

logger = logging.getLogger(__name__)

# torchvision sets no limit, and a connection that goes silent would wait for ever.
_SILENCE_SECONDS = 60.0


def download(task_name: str, data_dir: Path) -> None:
    """Download and unpack a task's files into `data_dir`, in the layout torchvision gives them.

    Archives that lie there already are not downloaded again.

    Raises:
        RefusedInput: It failed; the message lists each file's URL and where to put it.
    """
    logger.info("task %s: downloading %s", task_name, ", ".join(TASKS[task_name].downloads))
    silence_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    try:
        _torchvision_download(task_name, data_dir)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise RefusedInput(_what_to_fetch(task_name, data_dir, error)) from error
    finally:
        socket.setdefaulttimeout(silence_before)


def _torchvision_download(task_name: str, data_dir: Path) -> None:
    from torchvision import datasets

    classes: dict[str, Any] = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "pets": datasets.OxfordIIITPet,
        "flowers": datasets.Flowers102,
    }
    classes[task_name](root=str(data_dir), download=True)


def _what_to_fetch(task_name: str, data_dir: Path, error: Exception) -> str:
    task = TASKS[task_name]
    files = "".join(f"\n         {url}" for url in task.downloads)
    into = data_dir / task.download_folder
    return (
        f"task {task_name}: its files ({', '.join(task.needed)}) are not in --data-dir {data_dir} "
        f"(or {task.folder}/ in it), and downloading them failed: {error}\n"
        f"       Fetch by hand, on a machine with internet access:{files}\n"
        f"       and put them into {into}/ (archives as they are), or name the folder that has the "
        "task with --data-dir"
    )
