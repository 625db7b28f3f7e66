"""Stop requests: the flag, its name, and launchers that die."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from training import preemption

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def handlers(monkeypatch):
    """Handlers as they were, and no stop requested, before and after."""
    before = {number: signal.getsignal(number) for number in preemption.STOP_SIGNALS}
    monkeypatch.setattr(preemption, "_reason", None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_stop_signal_sets_the_flag_and_is_named(handlers, name):
    preemption.install_stop_handlers()
    assert preemption.stop_requested() is None
    os.kill(os.getpid(), getattr(signal, name))
    assert preemption.stop_requested() == name


def test_the_first_reason_is_kept(handlers):
    preemption.install_stop_handlers()
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.stop_requested() == "SIGUSR2"


def test_importing_it_imports_nothing_heavy():
    code = "import sys, training.preemption; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    loaded = set(run.stdout.split())
    assert "training.preemption" in loaded
    assert not loaded & {"torch", "numpy", "psutil", "pydantic", "deepspeed"}


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        ("/venv/bin/python /venv/bin/deepspeed launch/pretrain.py", True),
        ("/venv/bin/python3.11 -u -m deepspeed.launcher.launch --world_info=x a.py", True),
        ("/usr/bin/python3 /usr/local/bin/torchrun --nproc-per-node 2 a.py", True),
        ("python -m torch.distributed.run a.py", True),
        ("python -m accelerate.commands.launch finetune/run.py", True),
        ("python launch/pretrain.py --deepspeed", False),
        ("/bin/sh -c deepspeed launch/pretrain.py", False),
        ("/bin/bash run.sh deepspeed", False),
        ("", False),
    ],
)
def test_what_counts_as_a_launcher(command, is_launcher):
    assert preemption._is_launcher(command.split()) is is_launcher


RANK = """
import sys, time
sys.path.insert(0, {root!r})
from training.preemption import install_stop_handlers, stop_requested
install_stop_handlers(watch_parent=True, poll_seconds=0.05)
open({ready!r}, "w").close()
end = time.monotonic() + 30
while time.monotonic() < end and not stop_requested():
    time.sleep(0.02)
open({answer!r} + ".tmp", "w").write(str(stop_requested()))
import os; os.replace({answer!r} + ".tmp", {answer!r})
"""

LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


def wait_for(path, seconds=30.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never appeared"
        time.sleep(0.02)


@pytest.mark.integration
@pytest.mark.parametrize("outer_is_reaped", [True, False])
def test_a_dead_grandparent_launcher_is_noticed(tmp_path, outer_is_reaped):
    """Like `deepspeed` on SIGTERM: the outer process dies, the inner launcher and the rank live."""
    ready, answer = tmp_path / "ready", tmp_path / "answer"
    rank = tmp_path / "rank.py"
    rank.write_text(
        textwrap.dedent(RANK).format(root=str(ROOT), ready=str(ready), answer=str(answer))
    )
    # Both launchers are Python processes that run a file called as the real ones are.
    outer, inner = tmp_path / "deepspeed", tmp_path / "torchrun"
    outer.write_text(LAUNCHER)
    inner.write_text(LAUNCHER)
    process = subprocess.Popen([sys.executable, str(outer), str(inner), str(rank)])
    try:
        wait_for(ready)
        process.kill()
        if outer_is_reaped:
            process.wait(timeout=10)
        wait_for(answer)
    finally:
        process.kill()
        process.wait(timeout=10)
    assert answer.read_text() == f"parent is gone (launcher process {process.pid} has ended)"
