"""Holds the daemons of an emulated cluster, and ends with its standard input, all of them with it.

    python cluster_keeper.py FOLDER        # of the cluster; removed at the end

The test suite may end in any way, also by a timeout that gives no test a chance to clean up; its
end closes this process's standard input. Each line of that is JSON: a command to start, and the
file for what it writes. What daemons leave behind (each job step detaches from its `slurmd`)
becomes a child of this process, so that nothing outlives it.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SECONDS_TO_END = 10


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, reap)
    try:
        for line in sys.stdin:
            start(*json.loads(line))
    finally:
        end_descendants()
        shutil.rmtree(sys.argv[1], ignore_errors=True)


def start(command: list[str], output: str) -> None:
    with open(output, "ab") as file:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def reap(*_: Any) -> None:
    """A handler, because a signal that is ignored would be ignored by the daemons as well."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_descendants() -> None:
    """Again and again, for some start children while others are being killed."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < deadline:
        descendants = psutil.Process().children(recursive=True)
        if not descendants:
            return
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(descendants, timeout=0.5)


if __name__ == "__main__":
    main()
