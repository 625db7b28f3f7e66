"""Sends what an outage of MLflow has left in a run folder: `python -m tracking.sync RUN_DIR`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.command_line import run_command
from configs.errors import RefusedInput
from tracking.provenance import redact
from tracking.record import RunRecord, TrackingFiles
from tracking.sender import BackgroundSender, Sender
from tracking.store import prepare_environment, tracking_uri


def run_uri(run_dir: Path, override: str | None) -> str:
    """The store a run folder belongs to.

    Files hold no credentials, so an address in the environment that differs from the recorded one
    only by them is taken instead.

    Raises:
        RefusedInput: The folder is not one of a tracked run, or the URI can never work.
    """
    files = TrackingFiles(run_dir)
    if not files.events.is_file():
        raise RefusedInput(
            f"{run_dir} is not the folder of a tracked run: {files.events} is missing; "
            "give the folder that holds metrics.jsonl and tracking.json"
        )
    if override:
        return tracking_uri(override)
    recorded = RunRecord.load(files.record).uri
    from_environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not recorded or redact(from_environment) == recorded:
        return tracking_uri(None)
    return tracking_uri(recorded)


def main(argv: Sequence[str]) -> int:
    """Send the rest; 0 if MLflow has everything now, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m tracking.sync", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of the run, for example runs/NAME")
    parser.add_argument(
        "--timeout-seconds", type=float, default=120.0, help="how long to try (default: 120)"
    )
    parser.add_argument("--uri", help="MLflow store to send to; default: the one the run used")
    options = parser.parse_args(argv)
    uri = run_uri(options.run_dir, options.uri)
    prepare_environment()
    sender = Sender(options.run_dir.absolute(), uri)
    before = sender.remaining()
    if before == (0, 0):
        sys.stdout.write(f"{redact(uri)} has everything already\n")
        return 0
    started = time.monotonic()
    background = BackgroundSender(sender)
    background.start()
    is_complete = background.finish(options.timeout_seconds)
    rows, events = sender.remaining()
    sent = f"{max(0, before[0] - rows)} metric rows and {max(0, before[1] - events)} other records"
    sys.stdout.write(
        f"sent {sent} to {redact(uri)} in {time.monotonic() - started:.1f} s"
        f"{'' if is_complete else f'; {rows} and {events} are left: {background.last_problem}'}\n"
    )
    return 0 if is_complete else 1


if __name__ == "__main__":
    run_command(main)
